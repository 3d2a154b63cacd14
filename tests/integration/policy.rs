//! What keys are limited to, and what routes ask of them, through real Envoy with `routes.yaml`.

use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::Value;

use crate::harness::{
    envoy::{Gateway, VERSIONS},
    place::BUDGETS,
    service::{Key, Setup},
    until,
    upstream::Seen,
};

mod databases;

const NEWEST: &str = VERSIONS[1];

/// A key made with these options sends a request (`POST` where there is a body), and is let through
/// with status 200 and this `x-auth-result`, or denied with this status and code.
type Case = (&'static [&'static str], &'static str, &'static str, u16, &'static str);

const GPT: &str = r#"{"messages": [], "model": "gpt-4o"}"#;
const MORE: &str = r#"{"model": "gpt-4o", "models": ["gpt-5"]}"#;
const FALLBACK: &str = r#"{"model": "gpt-4o", "fallbacks": ["gpt-5", "claude"]}"#;
const ENGINE: &str = r#"{"engine": "gpt-4o", "model": "claude", "fallbacks": ["gpt-5"]}"#;

/// Pairs: what a limit lets through, and what it does not.
const CASES: &[Case] = &[
    (&["--allowed-ip", "127.0.0.0/8"], "/v1", "", 200, "allow"),
    (&["--allowed-ip", "10.0.0.0/8"], "/v1", "", 403, "ip_not_allowed"),
    (&["--allowed-endpoint", "GET /v1/**"], "/v1/models?a=/x", "", 200, "allow"),
    (&["--allowed-endpoint", "GET /v1/**"], "/v2/models", "", 403, "endpoint_not_allowed"),
    (&["--allowed-endpoint", "GET /v1/**"], "/v1/audio", "{}", 403, "endpoint_not_allowed"),
    (&["--allowed-model", "gpt-*"], "/v1/chat/completions", GPT, 200, "allow"),
    (&["--allowed-model", "claude-*"], "/v1/chat/completions", GPT, 403, "model_not_allowed"),
    (&["--allowed-model", "claude-*"], "/V1//Chat/completions", GPT, 403, "model_not_allowed"),
    // A model that nobody can see is none that is allowed, unless the route names none.
    (&["--allowed-model", "gpt-*"], "/v1/elsewhere", GPT, 403, "model_not_allowed"),
    (&["--allowed-model", "claude-*"], "/v1/audio/speech", GPT, 200, "allow"),
    (&["--scope", "chat", "--scope", "admin"], "/admin/users", "", 200, "allow"),
    (&["--scope", "chat"], "/admin/users", "", 403, "scope_missing"),
    (&["--scope", "chat"], "/%41DMIN;x", "", 403, "scope_missing"),
    (&["--allowed-chatbot", "helper"], "/v1/bots/helper/chat", "", 200, "allow"),
    (&["--allowed-chatbot", "helper"], "/v1/bots/other/chat", "", 403, "chatbot_not_allowed"),
    (&["--allowed-chatbot", "helper"], "/v1/bots", "", 403, "chatbot_not_allowed"),
    (&["--allowed-agent", "clerk"], "/v1/agents/clerk", "", 200, "allow"),
    (&["--allowed-agent", "clerk"], "/v1/agents/boss", "", 403, "agent_not_allowed"),
    // A router may use every model that the body names.
    (&["--allowed-model", "gpt-*"], "/v1/chat/completions", MORE, 200, "allow"),
    (&["--allowed-model", "gpt-4o"], "/v1/chat/completions", MORE, 403, "model_not_allowed"),
    (&["--allowed-model", "gpt-*"], "/v1/chat/completions", FALLBACK, 403, "model_not_allowed"),
    (&["--allowed-model", "gpt-*"], "/v1/engines/run", ENGINE, 200, "allow"),
    (&["--allowed-model", "gpt-4o"], "/v1/engines/run", ENGINE, 403, "model_not_allowed"),
    (&["--allowed-model", "gpt-*"], "/v1/engines/run", GPT, 403, "model_not_allowed"),
    (&["--allowed-agent", "7"], "/v1/runs", r#"{"agent_config_id": 7}"#, 200, "allow"),
    (&["--allowed-agent", "7"], "/v1/runs", r#"{"agent_config_id": "7"}"#, 200, "allow"),
    (&["--allowed-agent", "7"], "/v1/runs", r#"{"agent_config_id": 8}"#, 403, "agent_not_allowed"),
    (&["--allowed-agent", "7"], "/V1/Runs/x", r#"{"agent_config_id": 8}"#, 403, "agent_not_allowed"),
    (
        &["--allowed-agent", "7"],
        "/v1/runs",
        r#"{"agent_config_id": 7, "agent_config_id": 8}"#,
        403,
        "agent_not_allowed",
    ),
    (&["--allowed-agent", "7"], "/v1/runs", "{}", 403, "agent_not_allowed"),
    (&["--allowed-agent", "7"], "/v1/runs", "", 403, "agent_not_allowed"),
    (&["--budget-limit-cents", "100", "--budget-type", "total"], "/v1", "", 200, "allow"),
    (&["--budget-limit-cents", "0", "--budget-type", "total"], "/v1", "", 402, "budget_exhausted"),
    // Shadow mode of a route, and of a key.
    (&["--allowed-ip", "10.0.0.0/8"], "/beta/x", "", 200, "ip_not_allowed"),
    (&["--allowed-ip", "10.0.0.0/8", "--tag", "keystile:shadow"], "/v1", "", 200, "ip_not_allowed"),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_limit_lets_its_own_through_and_nothing_else() {
    for version in VERSIONS {
        let gateway = gateway(version, &[]).await;
        for case @ (options, path, body, status, code) in CASES {
            let key = gateway.keystile.setup.create_key("ada", options);
            let what = format!("Envoy {version}: {case:?}");
            let outcome = outcome(&gateway, request(&gateway, &key.credential, path, body)).await;
            assert_eq!((outcome.status, outcome.code.as_str()), (*status, *code), "{what}");
            if *status == 200 {
                let seen = outcome.seen.unwrap();
                assert_eq!(seen.headers["x-auth-key-id"], key.id.to_string(), "{what}");
                assert!(!format!("{seen:?}").contains(&key.credential), "{what}: {seen:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_revoked_and_deleted_keys_and_those_of_inactive_users_are_denied() {
    let setup = setup();
    setup.execute("ALTER TABLE api_keys ADD COLUMN deleted_at timestamp");
    assert!(setup.run(&["migrate"]).status.success());
    let gateway = Gateway::start(NEWEST, "routes.yaml", setup, &[]).await;
    let setup = &gateway.keystile.setup;
    let expiring = setup.create_key("ada", &["--expires-at", "3s", "--tag", "keystile:shadow"]);
    assert_eq!(code(&gateway, &expiring.credential, "/v1").await, (200, "allow".into()));
    let revoked = setup.create_key("ada", &["--tag", "keystile:shadow"]);
    setup.json(&["keys", "revoke", &revoked.id.to_string()]);
    assert_eq!(code(&gateway, &revoked.credential, "/v1").await, (401, "disabled".into()));
    let deleted = setup.create_key("ada", &["--tag", "keystile:shadow"]);
    setup.execute(&format!("UPDATE api_keys SET deleted_at = CURRENT_TIMESTAMP WHERE id = {}", deleted.id));
    assert_eq!(code(&gateway, &deleted.credential, "/v1").await, (401, "disabled".into()));
    setup.create_user("bob");
    let orphan = setup.create_key("bob", &[]);
    setup.json(&["users", "disable", "bob@example.com"]);
    assert_eq!(code(&gateway, &orphan.credential, "/v1").await, (401, "user_inactive".into()));
    until("the key has expired", Duration::from_secs(10), async || {
        code(&gateway, &expiring.credential, "/v1").await == (401, "expired".into())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spent_budget_of_a_period_stands_against_what_it_is_about() {
    for version in VERSIONS {
        let setup = setup();
        setup.execute(BUDGETS);
        let key = |used: u8, models: &str| {
            let key = setup.create_key("ada", &[]);
            let columns = "user_id, api_key_id, limit_cents, current_usage_cents, period_start, period_end, allowed_models";
            let row = format!(
                "1, {}, 100, {used}, '2010-01-01 00:00:00', '2999-01-01 00:00:00', '{models}'",
                key.id
            );
            setup.execute(&format!("INSERT INTO budgets ({columns}) VALUES ({row})"));
            key.credential
        };
        let (left, spent) = (key(99, "[]"), key(100, "[]"));
        let (gpt, claude) = (key(100, r#"["gpt-4o"]"#), key(100, r#"["claude"]"#));
        let gateway = Gateway::start(version, "routes.yaml", setup, &[]).await;
        let (allowed, denied) = ((200, "allow"), (402, "budget_exhausted"));
        for (key, path, body, expected) in [
            (&left, "/v1", "", allowed),
            (&spent, "/v1", "", denied),
            (&gpt, "/v1/chat/completions", GPT, denied),
            (&claude, "/v1/chat/completions", GPT, allowed),
            // A model that nobody can see may be any, unless the route names none.
            (&claude, "/v1/elsewhere", GPT, denied),
            (&gpt, "/v1/audio/speech", GPT, allowed),
        ] {
            let outcome = outcome(&gateway, request(&gateway, key, path, body)).await;
            assert_eq!((outcome.status, outcome.code.as_str()), expected, "Envoy {version}: {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spent_budget_of_an_endpoint_stands_against_every_spelling_of_it() {
    let setup = setup();
    setup.execute(BUDGETS);
    let key = |endpoint: &str| {
        let key = setup.create_key("ada", &[]);
        let row = format!("1, {}, 1, 1, '2010-01-01', '2999-01-01', '[\"{endpoint}\"]'", key.id);
        let columns = "user_id, api_key_id, limit_cents, current_usage_cents, period_start, period_end, allowed_endpoints";
        setup.execute(&format!("INSERT INTO budgets ({columns}) VALUES ({row})"));
        key.credential
    };
    let (whole, end) = (key("/v1/embeddings/large"), key("embeddings/large"));
    let gateway = Gateway::start(NEWEST, "routes.yaml", setup, &[]).await;
    for path in [
        "/v1/embeddings/large",
        "/v1/embeddings/large/",
        "/v1/embeddings/large%20",
        "/V1/Embeddings/LARGE",
        "/v1/embeddings/%6carge?a=b",
    ] {
        for key in [&whole, &end] {
            assert_eq!(code(&gateway, key, path).await, (402, "budget_exhausted".into()), "{path}");
        }
    }
    for key in [&whole, &end] {
        assert_eq!(code(&gateway, key, "/v1/embeddings").await, (200, "allow".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn address_is_the_one_that_envoy_trusts() {
    for (hops, local, remote) in [("0", 200, 403), ("1", 403, 200)] {
        let (hops, setup) = (format!("xff_num_trusted_hops: {hops}"), setup());
        let key = |network| setup.create_key("ada", &["--allowed-ip", network]).credential;
        let (here, there) = (key("127.0.0.0/8"), key("10.0.0.0/8"));
        let edits = [("xff_num_trusted_hops: 0", hops.as_str())];
        let gateway = Gateway::before(NEWEST, "routes.yaml", setup.start(&[]).await, &edits).await;
        for (key, expected) in [(here, local), (there, remote)] {
            let request = gateway.get("/v1").bearer_auth(key).header("x-forwarded-for", "10.1.2.3");
            let request = request.header("x-client-ip", "10.1.2.3").header("x-real-ip", "10.1.2.3");
            assert_eq!(request.send().await.unwrap().status(), expected, "{hops}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn optional_credential_admits_nobody_and_no_wrong_key() {
    for version in VERSIONS {
        let setup = setup();
        let key = setup.create_key("ada", &[]);
        let gateway = Gateway::start(version, "routes.yaml", setup, &[]).await;
        let request = gateway.get("/public/x").header("x-auth-user-id", "1").header("x-auth-result", "allow");
        let nobody = outcome(&gateway, request).await;
        assert_eq!((nobody.status, nobody.code.as_str()), (200, "anonymous"));
        let headers = nobody.seen.unwrap().headers;
        let identity: Vec<_> = headers.keys().filter(|name| name.starts_with("x-auth-")).collect();
        assert_eq!(identity, ["x-auth-result"]);
        assert_eq!(code(&gateway, &key.credential, "/public").await, (200, "allow".into()));
        for (wrong, reason) in [("ks_nobodysKey", "invalid_credential"), ("no", "malformed_credential")] {
            assert_eq!(code(&gateway, wrong, "/public").await, (401, reason.into()));
        }
        for elsewhere in ["/publicity", "/Public", "/public/..;/v1", "/public/.%2E;x/v1"] {
            let status = gateway.get(elsewhere).send().await.unwrap().status();
            assert!(status.is_client_error(), "Envoy {version}: {elsewhere}: {status}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shadow_mode_lets_everything_through_and_says_what_it_would_have_denied() {
    let gateway = gateway(NEWEST, &[("KEYSTILE_MODE", "shadow")]).await;
    let key = gateway.keystile.setup.create_key("ada", &["--allowed-ip", "10.0.0.0/8"]);
    assert_eq!(code(&gateway, &key.credential, "/v1").await, (200, "ip_not_allowed".into()));
    let wrong = outcome(&gateway, request(&gateway, "ks_nobodysKey", "/v1", "")).await;
    assert_eq!((wrong.status, wrong.code.as_str()), (200, "invalid_credential"));
    assert!(!format!("{:?}", wrong.seen).contains("ks_nobodysKey"));
    logged(&gateway, "\"reason\":\"ip_not_allowed\"").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn route_whose_settings_cannot_be_followed_is_503_and_says_why_in_the_access_log() {
    let settings = "keystile.scopes: \"admin\"";
    for (wrong, error) in [
        ("keystile.scope: \"admin\"", "route setting keystile.scope: is unknown"),
        ("keystile.mode: \"Shadow\"", "route setting keystile.mode: has none of the documented values"),
    ] {
        let setup = setup();
        let key = setup.create_key("ada", &["--scope", "admin"]).credential;
        let keystile = setup.start(&[]).await;
        let gateway = Gateway::before(NEWEST, "routes.yaml", keystile, &[(settings, wrong)]).await;
        assert_eq!(code(&gateway, &key, "/admin").await, (503, "route_misconfigured".into()), "{wrong}");
        assert_eq!(code(&gateway, &key, "/v1").await, (200, "allow".into()));
        logged(&gateway, &format!("\"route_error\":\"{error}\"")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_held_back_only_where_a_model_is_checked() {
    for version in VERSIONS {
        let gateway = gateway(version, &[]).await;
        let key = gateway.keystile.setup.create_key("ada", &["--scope", "admin"]).credential;
        let big = "x".repeat(2 * 1024 * 1024);
        for path in ["/v1", "/admin", "/v1/bots/a", "/v1/agents/a", "/v1/audio", "/public", "/beta"] {
            let answer = request(&gateway, &key, path, &big).send().await.unwrap();
            assert_eq!(answer.status(), 200, "Envoy {version}: {path}");
        }
        let answer = request(&gateway, &key, "/v1/chat/completions", &big).send().await.unwrap();
        assert_eq!(answer.status(), 413);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn model_in_a_body_that_cannot_be_read_is_denied() {
    let gateway = gateway(NEWEST, &[]).await;
    let Key { credential, .. } = gateway.keystile.setup.create_key("ada", &["--allowed-model", "gpt-4o"]);
    for (name, value, expected) in [
        ("content-type", "application/json; charset=utf-8", 200),
        ("content-type", "application/json; charset=utf-16", 403),
        // {"a":"&model=o3&",...} is both: JSON, and a form that names another model.
        ("content-type", "application/x-www-form-urlencoded", 403),
        ("content-type", "application/x-www-form-urlencoded,x+json", 403),
        ("content-type", "application/json; charset =utf-16", 403),
        ("content-type", "application/json; charset*=utf-16", 403),
        ("content-type", "application/json; charset=utf-8; charset=utf-16", 403),
        ("content-type", "application/vnd.api+json ; charset=\"utf-8\"", 200),
        ("content-encoding", "identity", 200),
        ("content-encoding", "identity, gzip", 403),
        ("content-encoding", "gzip", 403),
    ] {
        const BOTH: &str = r#"{"a": "&model=o3&", "model": "gpt-4o"}"#;
        let request = gateway.request(Method::POST, "/v1/chat/completions").header(name, value).body(BOTH);
        let answer = request.bearer_auth(&credential).send().await.unwrap();
        assert_eq!(answer.status(), expected, "{name}: {value}");
    }
}

/// What became of a request.
struct Outcome {
    status: u16,
    /// `x-auth-result` as the upstream saw it, or the code of a denial.
    code: String,
    seen: Option<Seen>,
}

fn setup() -> Setup {
    let setup = Setup::new();
    setup.create_user("ada");
    setup
}

async fn gateway(version: &str, settings: &[(&str, &str)]) -> Gateway {
    Gateway::start(version, "routes.yaml", setup(), settings).await
}

/// A request with this key: `POST` where there is a body.
fn request(gateway: &Gateway, key: &str, path: &str, body: &str) -> RequestBuilder {
    let method = if body.is_empty() { Method::GET } else { Method::POST };
    gateway.request(method, path).bearer_auth(key).body(body.to_owned())
}

/// Sends it. What is denied must not reach the upstream, and what is allowed must, once.
async fn outcome(gateway: &Gateway, request: RequestBuilder) -> Outcome {
    let before = gateway.upstream.requests();
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    assert_eq!(gateway.upstream.requests() - before, usize::from(status == 200), "{answer:?}");
    if status == 200 {
        let seen: Seen = answer.json().await.unwrap();
        return Outcome { status, code: seen.headers["x-auth-result"].clone(), seen: Some(seen) };
    }
    let denial: Value = answer.json().await.unwrap();
    Outcome { status, code: denial["code"].as_str().unwrap().to_owned(), seen: None }
}

async fn code(gateway: &Gateway, key: &str, path: &str) -> (u16, String) {
    let outcome = outcome(gateway, request(gateway, key, path, "")).await;
    (outcome.status, outcome.code)
}

async fn logged(gateway: &Gateway, text: &str) {
    until(text, Duration::from_secs(5), async || gateway.log().contains(text)).await;
}
