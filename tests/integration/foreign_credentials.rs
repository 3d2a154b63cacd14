//! A key or a user's JWT on the same routes, through real Envoy: each request passes with what was verified, or not at
//! all.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::HeaderValue;
use serde_json::{Value, json};
use sha2::Sha256;

use crate::harness::{
    envoy::{Gateway, VERSIONS},
    service::{Key, Setup},
    until,
    upstream::Seen,
};

const SECRET: &[u8] = b"the secret of the login service of these tests";
const ISSUER: &str = "https://login.example.com";
/// What Istio and Envoy Gateway make of the examples in `k8s/examples/`, as static configurations.
const GENERATED: [&str; 2] =
    ["../tests/integration/gateways/istio-jwt.yaml", "../tests/integration/gateways/envoy-gateway-jwt.yaml"];

/// A JWT that is valid for this many seconds.
fn jwt(secret: &[u8], seconds: i64) -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs().cast_signed();
    let claims = json!({"iss": ISSUER, "sub": "user-7", "exp": now + seconds});
    let encode = |part: &Value| BASE64URL_NOPAD.encode(part.to_string().as_bytes());
    let signed = format!("{}.{}", encode(&json!({"alg": "HS256", "typ": "JWT"})), encode(&claims));
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
    mac.update(signed.as_bytes());
    format!("{signed}.{}", BASE64URL_NOPAD.encode(&mac.finalize().into_bytes()))
}

fn valid() -> String {
    jwt(SECRET, 600)
}

fn forged() -> String {
    jwt(b"another secret", 600)
}

fn bearer(token: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer {token}"))
}

/// Envoy and Keystile, whose keys begin with `ks_`, and a key of `ada`.
async fn gateway(
    version: &str,
    config: &str,
    settings: &[(&str, &str)],
    edits: &[(&str, &str)],
) -> (Gateway, Key) {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    let jwks = json!({"keys": [{"kty": "oct", "alg": "HS256", "k": BASE64URL_NOPAD.encode(SECRET)}]});
    let file = setup.path("jwks.json");
    std::fs::write(&file, jwks.to_string()).unwrap();
    let keystile = setup.start(&[settings, &[("KEYSTILE_KEY_BRANDS", "ks_")]].concat()).await;
    let jwks = [("/etc/envoy/jwks.json", file.to_str().unwrap())];
    let jwks = if config == "routes.yaml" { &[][..] } else { &jwks };
    (Gateway::before(version, config, keystile, &[edits, jwks].concat()).await, key)
}

/// The status of a request with these headers, and what the upstream saw of it.
async fn send(gateway: &Gateway, path: &str, headers: &[(&str, String)]) -> (u16, Option<Seen>) {
    let before = gateway.upstream.requests();
    let mut request = gateway.get(path);
    for (name, value) in headers {
        request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let seen = gateway.upstream.requests() > before;
    assert_eq!(seen, status == 200, "{headers:?}: {status}");
    (status, if seen { Some(answer.json().await.unwrap()) } else { None })
}

fn header<'a>(seen: &'a Seen, name: &str) -> Option<&'a str> {
    seen.headers.get(name).map(String::as_str)
}

/// A lenient server takes each of these for a request with `key`, which nothing has proven.
fn lenient_requests(key: &str) -> Vec<(&'static str, String)> {
    let rest = &key[3..];
    let values = [
        key.to_ascii_uppercase(),
        format!("KS_{rest}"),
        format!("%6bs_{rest}"),
        format!("%6Bs%5f{rest}"),
        format!("%256bs_{rest}"),
        format!("\"{key}\""),
        format!("x;{key}"),
        format!("{} {key}", valid()),
        format!("{},{key}", valid()),
        format!("eyJhbGciOiJub25lIn0.e30.{key}"),
        format!("Bearer{key}"),
        format!("Basic {key}"),
        format!("\u{a0}{key}"),
    ];
    let all = values
        .iter()
        .flat_map(|value| [("x-api-key", value.clone()), ("authorization", value.clone()), bearer(value)]);
    // With a scheme or in a header of its own, this is a key.
    all.chain([("authorization", key.to_owned())]).collect()
}

async fn requests_pass_with_what_was_verified(gateway: &Gateway, key: &Key, what: &str) {
    let (good, user) = (&key.credential, valid());
    let api_key = |value: &str| ("x-api-key", value.to_owned());
    let expired = jwt(SECRET, -600);

    // By the key: neither the key nor somebody else's JWT reaches the upstream.
    for headers in [
        vec![api_key(good)],
        vec![api_key(&format!("Bearer {good}"))],
        vec![bearer(good)],
        vec![api_key(good), bearer(&user)],
        vec![api_key(good), bearer(&forged())],
        vec![api_key(good), ("authorization", "Basic dXNlcjpwYXNz".to_owned())],
        vec![api_key(&user), bearer(good)],
        vec![api_key(""), bearer(good)],
    ] {
        let (status, seen) = send(gateway, "/v1/models", &headers).await;
        assert_eq!(status, 200, "{what}: {headers:?}");
        let seen = seen.unwrap();
        assert_eq!(header(&seen, "x-auth-result"), Some("allow"), "{what}");
        assert_eq!(header(&seen, "x-auth-user-name"), Some("ada"), "{what}");
        assert_eq!(header(&seen, "authorization"), None, "{what}: {headers:?}");
        assert_eq!(header(&seen, "x-api-key").unwrap_or_default(), "", "{what}: {headers:?}");
    }

    // By the JWT: the upstream gets it, and no identity from Keystile.
    for headers in [
        vec![bearer(&user)],
        vec![bearer(&user), api_key("")],
        vec![bearer(&user), ("x-auth-user-id", "1".to_owned()), ("x-auth-result", "allow".to_owned())],
    ] {
        let (status, seen) = send(gateway, "/v1/models", &headers).await;
        assert_eq!(status, 200, "{what}: {headers:?}");
        let seen = seen.unwrap();
        assert_eq!(header(&seen, "authorization"), Some(format!("Bearer {user}").as_str()), "{what}");
        assert_eq!(header(&seen, "x-auth-result"), Some("anonymous"), "{what}");
        assert_eq!(header(&seen, "x-auth-user-id"), None, "{what}");
    }

    // By nothing.
    let wrong = format!("{}x", &good[..good.len() - 1]);
    let none = [
        vec![],
        vec![bearer(&forged())],
        vec![bearer(&expired)],
        vec![bearer("opaque-token")],
        vec![bearer("")],
        vec![api_key(&user)],
        vec![("authorization", user.clone())],
        vec![("authorization", "Basic dXNlcjpwYXNz".to_owned())],
        vec![("x-auth-result", "allow".to_owned())],
        vec![("x-auth-result", "allow".to_owned()), bearer("opaque-token")],
        vec![bearer(&wrong)],
        vec![api_key(&wrong), bearer(&user)],
        vec![bearer(&user), bearer(&user)],
        vec![bearer(&format!("{user} {user}"))],
    ];
    for headers in none.into_iter().chain(lenient_requests(good).into_iter().map(|header| vec![header])) {
        let (status, _) = send(gateway, "/v1/models", &headers).await;
        assert!(status == 401 || status == 403, "{what}: {headers:?}: {status}");
    }
    // Envoy must verify the JWT that the upstream reads.
    let path = format!("/v1/models?access_token={user}");
    for headers in [vec![], vec![bearer(&forged())]] {
        let (status, _) = send(gateway, &path, &headers).await;
        assert!(status == 401 || status == 403, "{what}: {path} {headers:?}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_or_jwt_opens_a_shared_route_and_nothing_else_does() {
    for version in VERSIONS {
        let (gateway, key) = gateway(version, "jwt.yaml", &[], &[]).await;
        requests_pass_with_what_was_verified(&gateway, &key, &format!("Envoy {version}")).await;
        for (headers, status) in
            [(vec![], 401), (vec![bearer("opaque-token")], 401), (vec![bearer(&forged())], 401)]
        {
            assert_eq!(
                send(&gateway, "/v1/models", &headers).await.0,
                status,
                "Envoy {version}: {headers:?}"
            );
        }
        // Elsewhere only a key does.
        assert_eq!(send(&gateway, "/other", &[bearer(&valid())]).await.0, 401);
        assert_eq!(send(&gateway, "/other", &[bearer(&key.credential)]).await.0, 200);
        assert_eq!(gateway.get("/healthz").send().await.unwrap().status(), 200);

        let logged = |needle: &str| gateway.log().contains(needle);
        until("the access log names the JWT's user", Duration::from_secs(5), async || {
            logged("\"jwt_sub\":\"user-7\"") && logged("\"foreign_credential\":true")
        })
        .await;
        assert!(!logged(&key.credential) && !logged("eyJ"), "a token is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shapes_that_istio_and_envoy_gateway_generate_decide_the_same() {
    for config in GENERATED {
        let (gateway, key) = gateway(VERSIONS[1], config, &[], &[]).await;
        requests_pass_with_what_was_verified(&gateway, &key, config).await;
    }
}

/// Somebody relaxes the rule of `jwt_authn`: RBAC asks for what was verified, and not for what was sent.
#[tokio::test(flavor = "multi_thread")]
async fn rbac_demands_a_verified_jwt_and_no_foreign_token_suffices() {
    let edits = [("requires: {provider_name: users}", "requires: {allow_missing_or_failed: {}}")];
    for version in VERSIONS {
        let (gateway, key) = gateway(version, "jwt.yaml", &[], &edits).await;
        for headers in
            [vec![], vec![bearer("opaque-token")], vec![bearer(&forged())], vec![bearer(&jwt(SECRET, -600))]]
        {
            assert_eq!(send(&gateway, "/v1/models", &headers).await.0, 403, "Envoy {version}: {headers:?}");
        }
        assert_eq!(send(&gateway, "/v1/models", &[bearer(&key.credential)]).await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarded_key_passes_jwt_authn_and_a_jwt_that_comes_with_it_must_be_valid() {
    for version in VERSIONS {
        let settings = [("KEYSTILE_FORWARD_CREDENTIAL", "true")];
        let (gateway, key) = gateway(version, "jwt.yaml", &settings, &[]).await;
        let good = &key.credential;
        let (status, seen) = send(&gateway, "/v1/models", &[bearer(good)]).await;
        assert_eq!(status, 200, "Envoy {version}");
        assert_eq!(header(&seen.unwrap(), "authorization"), Some(format!("Bearer {good}").as_str()));

        let with_key = |token: &str| [("x-api-key", good.clone()), bearer(token)];
        let user = valid();
        let (status, seen) = send(&gateway, "/v1/models", &with_key(&user)).await;
        assert_eq!(status, 200, "Envoy {version}");
        let seen = seen.unwrap();
        assert_eq!(header(&seen, "x-api-key"), Some(good.as_str()));
        assert_eq!(header(&seen, "authorization"), Some(format!("Bearer {user}").as_str()));
        for token in [forged(), jwt(SECRET, -600), "opaque-token".to_owned()] {
            assert_eq!(
                send(&gateway, "/v1/models", &with_key(&token)).await.0,
                401,
                "Envoy {version}: {token}"
            );
        }
        assert_eq!(send(&gateway, "/v1/models", &[bearer(&valid())]).await.0, 200);
        for (name, value) in lenient_requests(good) {
            assert_eq!(
                send(&gateway, "/v1/models", &[(name, value.clone())]).await.0,
                401,
                "{name}: {value}"
            );
        }
    }
}

/// Without `jwt_authn`: what passes an optional route must be nothing that a lenient upstream takes for a key.
#[tokio::test(flavor = "multi_thread")]
async fn optional_route_forwards_foreign_tokens_and_no_key_in_any_spelling() {
    for version in VERSIONS {
        let (gateway, key) = gateway(version, "routes.yaml", &[], &[]).await;
        for foreign in [bearer(&valid()), bearer("1|opaque"), ("x-api-key", "AIzaSyA-0".to_owned())] {
            let (status, seen) = send(&gateway, "/public/page", std::slice::from_ref(&foreign)).await;
            assert_eq!(status, 200, "{foreign:?}");
            let seen = seen.unwrap();
            assert_eq!(header(&seen, "x-auth-result"), Some("anonymous"));
            assert_eq!(header(&seen, foreign.0), Some(foreign.1.as_str()));
            let answer = gateway.get("/v1/models").header(foreign.0, &foreign.1).send().await.unwrap();
            let denial: Value = answer.json().await.unwrap();
            assert_eq!(denial["code"], "missing_credential", "{foreign:?}");
        }
        for (name, value) in lenient_requests(&key.credential) {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            let answer = gateway.get("/public/page").header(name, &value).send().await.unwrap();
            assert_eq!(answer.status(), 401, "{name}: {value:?}");
            let denial: Value = answer.json().await.unwrap();
            assert_eq!(denial["code"], "malformed_credential", "{name}: {value:?}");
        }
        // Two tokens in two lines of one header, which Envoy sends as they came.
        for (first, second) in [(valid(), key.credential.clone()), (key.credential.clone(), valid())] {
            let request = gateway.get("/public/page").header("x-api-key", first).header("x-api-key", second);
            assert_eq!(request.send().await.unwrap().status(), 401);
        }
    }
}

#[test]
fn generated_shapes_have_the_filters_of_the_examples() {
    for (config, example) in GENERATED.iter().zip(["istio-jwt.yaml", "envoy-gateway-jwt.yaml"]) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
        let (config, example) = (read(&format!("envoy/{config}")), read(&format!("k8s/examples/{example}")));
        for part in ["keystile.credential", "optional", "x-auth-result", ISSUER] {
            assert!(config.contains(part) && example.contains(part), "{part}");
        }
    }
}
