//! A request goes through real Envoy to an upstream that is told who it is, or does not get there.

use std::{collections::BTreeMap, time::Duration};

use keystile::ext_authz::headers;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::harness::{
    envoy::{Gateway, VERSIONS},
    service::{Key, Setup},
    until,
    upstream::Seen,
};

/// A user `ada` with a key.
fn setup(options: &[&str]) -> (Setup, Key) {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", options);
    (setup, key)
}

async fn seen(answer: Response) -> Seen {
    assert_eq!(answer.status(), 200);
    answer.json().await.unwrap()
}

async fn code(answer: Response) -> (u16, String) {
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["status"], json!(status));
    (status, body["code"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_configuration_lets_good_keys_through_and_no_others() {
    for version in VERSIONS {
        for config in ["uds.yaml", "tcp.yaml", "body.yaml", "routes.yaml", "openai.yaml"] {
            let (setup, key) = setup(&["--scope", "models.list", "--rate-limit-per-minute", "60"]);
            let gateway = Gateway::start(version, config, setup, &[]).await;
            let what = format!("Envoy {version}, {config}");

            let answer = gateway.get("/v1/models").send().await.unwrap();
            assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"api\"", "{what}");
            assert_eq!(answer.headers()["content-type"], "application/problem+json", "{what}");
            assert_eq!(code(answer).await, (401, "missing_credential".into()), "{what}");

            let answer = gateway.get("/v1/models").bearer_auth("ks_nobodysKey").send().await.unwrap();
            assert_eq!(code(answer).await, (401, "invalid_credential".into()), "{what}");

            let answer = gateway.get("/v1/models").bearer_auth(&key.credential).send().await.unwrap();
            let seen = seen(answer).await;
            for (name, value) in [
                ("x-auth-result", "allow"),
                ("x-auth-user-name", "ada"),
                ("x-auth-user-email", "ada@example.com"),
                ("x-auth-key-prefix", &key.credential[..8]),
                ("x-auth-scopes", "models.list"),
                ("x-ratelimit-limit-minute", "60"),
            ] {
                assert_eq!(seen.headers.get(name).map(String::as_str), Some(value), "{what}: {name}");
            }
            assert!(!format!("{seen:?}").contains(&key.credential), "{what}: the key reached the upstream");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_share_eight_characters_with_a_good_one_are_denied() {
    for version in VERSIONS {
        let (setup, key) = setup(&[]);
        let gateway = Gateway::start(version, "uds.yaml", setup, &[]).await;
        assert_eq!(gateway.status(&key.credential).await, 200);
        let good = &key.credential;
        let mut others = vec![good[..8].to_owned(), format!("{good}x")];
        others.extend((8..good.len()).step_by(5).map(|end| good[..end].to_owned()));
        others.extend((8..good.len()).step_by(5).map(|at| {
            let other = if &good[at..=at] == "a" { "b" } else { "a" };
            format!("{}{other}{}", &good[..at], &good[at + 1..])
        }));
        for other in others {
            assert_eq!(gateway.status(&other).await, 401, "{other} passes for {good}");
        }
        assert_eq!(gateway.status(good).await, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_a_client_forges_do_not_reach_the_upstream() {
    let lost = [
        ("remove_on_match: {key_matcher: {prefix: x-auth-, ignore_case: true}}", "remove: x-nobodys"),
        ("remove_on_match: {key_matcher: {prefix: x-ratelimit-, ignore_case: true}}", "remove: x-nobodys"),
    ];
    for version in VERSIONS {
        // By Envoy before it asks, and by what Keystile answers, which suffices alone.
        for (edits, remove) in [([].as_slice(), "seen"), (&lost, "seen"), (&lost, "all")] {
            let (setup, key) = setup(&[]);
            let chosen =
                [("KEYSTILE_UPSTREAM_HEADERS", "x-auth-user-name"), ("KEYSTILE_REMOVE_HEADERS", remove)];
            let gateway = Gateway::before(version, "tcp.yaml", setup.start(&chosen).await, edits).await;
            // From memory as well, which keeps the answer to an honest one.
            for forged in [headers::TABLE, &[], &[], headers::TABLE] {
                let mut request = gateway.get("/v1/models").header("x-api-key", &key.credential);
                for header in forged {
                    request = request.header(header.name, "forged").header(header.name, "twice");
                }
                let seen = seen(request.send().await.unwrap()).await;
                let ours: BTreeMap<_, _> = seen
                    .headers
                    .iter()
                    .filter(|(name, _)| name.starts_with("x-auth-") || name.starts_with("x-ratelimit-"))
                    .collect();
                assert_eq!(ours, BTreeMap::from([(&"x-auth-user-name".into(), &"ada".into())]), "{remove}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_in_query_or_cookie_is_taken_out_of_the_request() {
    for version in VERSIONS {
        let (setup, key) = setup(&[]);
        let settings = [("KEYSTILE_CREDENTIAL_SOURCES", "query:key,cookie:key")];
        let gateway = Gateway::start(version, "uds.yaml", setup, &settings).await;
        let key = &key.credential;

        let answer = gateway.get(&format!("/v1?a=1&key={key}&b=2")).send().await.unwrap();
        let by_query = seen(answer).await;
        assert!(!by_query.path.contains(key), "{}", by_query.path);
        assert!(by_query.path.contains("a=1") && by_query.path.contains("b=2"), "{}", by_query.path);

        let cookies = format!("theme=dark; key={key}; lang=en");
        let by_cookie = seen(gateway.get("/v1").header("cookie", cookies).send().await.unwrap()).await;
        assert_eq!(by_cookie.headers["cookie"], "theme=dark; lang=en");
        let alone = gateway.get("/v1").header("cookie", format!("key={key}")).send().await.unwrap();
        assert_eq!(seen(alone).await.headers.get("cookie"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credential_is_forwarded_only_when_asked_for() {
    let (setup, key) = setup(&[]);
    let gateway =
        Gateway::start(VERSIONS[1], "uds.yaml", setup, &[("KEYSTILE_FORWARD_CREDENTIAL", "true")]).await;
    let answer = gateway.get("/v1").header("x-api-key", &key.credential).send().await.unwrap();
    assert_eq!(seen(answer).await.headers["x-api-key"], key.credential);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_different_keys_in_one_request_are_ambiguous() {
    for version in VERSIONS {
        let (setup, key) = setup(&[]);
        let other = setup.create_key("ada", &[]);
        let gateway = Gateway::start(version, "uds.yaml", setup, &[]).await;
        let both = |second: &str| {
            let request = gateway.get("/v1").header("x-api-key", &key.credential);
            request.header("x-api-key", second.to_owned()).send()
        };
        assert_eq!(code(both(&other.credential).await.unwrap()).await.1, "ambiguous_credential");
        assert_eq!(both(&key.credential).await.unwrap().status(), 200);
        // Envoy joins these two with a comma, even in raw form.
        let request = gateway.get("/v1").bearer_auth(&key.credential).bearer_auth(&other.credential);
        assert_eq!(code(request.send().await.unwrap()).await.1, "malformed_credential");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_requests_are_denied_and_harm_nothing() {
    for version in VERSIONS {
        let (setup, key) = setup(&[]);
        let gateway = Gateway::start(version, "uds.yaml", setup, &[]).await;
        let huge = "k".repeat(10 * 1024);
        let answer = gateway.get("/v1").header("x-api-key", huge).send().await.unwrap();
        assert_eq!(code(answer).await, (401, "malformed_credential".into()));
        let not_text = reqwest::header::HeaderValue::from_bytes(b"ks_\xff\xfe\xfd_abcdef").unwrap();
        let answer = gateway.get("/v1").header("x-api-key", not_text).send().await.unwrap();
        assert_eq!(code(answer).await, (401, "malformed_credential".into()));
        let options = gateway.request(Method::OPTIONS, "/*").send().await.unwrap();
        assert_eq!(options.status(), 401);
        assert_eq!(gateway.status(&key.credential).await, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn access_log_names_key_and_reason_and_never_the_credential() {
    for version in VERSIONS {
        let (setup, key) = setup(&[]);
        let gateway = Gateway::start(version, "uds.yaml", setup, &[]).await;
        gateway.status(&key.credential).await;
        gateway.status("ks_nobodysKey").await;
        let found = |needle: &str| gateway.log().contains(needle);
        until("both are logged", std::time::Duration::from_secs(5), async || {
            found("invalid_credential") && found(&format!("\"key_id\":\"{}\"", key.id))
        })
        .await;
        assert!(!found(&key.credential) && !found("ks_nobodysKey"));
        assert!(!gateway.keystile.setup.log().contains(&key.credential));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn route_that_needs_no_key_is_open_and_strips_forged_identities() {
    let (setup, _) = setup(&[]);
    let gateway = Gateway::start(VERSIONS[1], "uds.yaml", setup, &[]).await;
    assert_eq!(gateway.get("/healthz").send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_answers_503_when_keystile_is_gone() {
    for version in VERSIONS {
        let (setup, key) = setup(&[]);
        let mut gateway = Gateway::start(version, "uds.yaml", setup, &[]).await;
        assert_eq!(gateway.status(&key.credential).await, 200);
        gateway.keystile.process.kill();
        let answer = gateway.get("/v1").header("x-api-key", &key.credential).send().await.unwrap();
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        let problem: Value = answer.json().await.unwrap();
        assert_eq!((&problem["code"], &problem["status"]), (&"unavailable".into(), &503.into()), "{problem}");
        assert!(problem["request_id"].as_str().is_some_and(|id| id.len() == 36), "{problem}");
    }
}

/// The body of Keystile's own denials is not replaced.
#[tokio::test(flavor = "multi_thread")]
async fn denials_reach_the_client_as_keystile_wrote_them() {
    let (setup, _) = setup(&[]);
    let gateway = Gateway::start(VERSIONS[1], "uds.yaml", setup, &[("KEYSTILE_DENY_FORMAT", "openai")]).await;
    let answer = gateway.get("/v1").header("x-api-key", "ks_nobodysKey").send().await.unwrap();
    let error: Value = answer.json().await.unwrap();
    assert_eq!(error["error"]["code"], "invalid_credential", "{error}");
}

/// Under journald, stdout is a socket, which a program cannot open by its path.
#[tokio::test(flavor = "multi_thread")]
async fn envoy_starts_with_a_socket_as_stdout() {
    for config in [
        "body.yaml",
        "global-ratelimit.yaml",
        "local-ratelimit.yaml",
        "openai.yaml",
        "routes.yaml",
        "tcp.yaml",
        "uds.yaml",
    ] {
        let (setup, key) = setup(&[]);
        let keystile = setup.start(&[]).await;
        let gateway = Gateway::with_socket_as_stdout(VERSIONS[1], config, keystile).await;
        gateway.status(&key.credential).await;
        until("the access log has the request", Duration::from_secs(5), async || {
            gateway.log().contains("/v1/models")
        })
        .await;
    }
}
