//! A gateway for language models (`envoy/openai.yaml`): its routes, and the clients that use them.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;

use crate::harness::{
    envoy::{Gateway, VERSIONS},
    provider,
    service::Setup,
    tools::read,
};

mod clients;

const NEWEST: &str = VERSIONS[1];

/// Every scope of `envoy/openai.yaml`, but for `api.other`.
const SCOPES: [&str; 17] = [
    "models.list",
    "files",
    "batches",
    "chat.completions",
    "completions.create",
    "responses.create",
    "messages.create",
    "embeddings.create",
    "moderations.create",
    "images.generate",
    "images.edit",
    "audio.speech",
    "audio.transcriptions",
    "audio.translations",
    "realtime.connect",
    "chatbot.chat",
    "agent.chat",
];

async fn gateway(version: &str) -> Gateway {
    gateway_with(version, &[]).await
}

async fn gateway_with(version: &str, settings: &[(&str, &str)]) -> Gateway {
    let setup = Setup::new();
    setup.create_user("ada");
    let keystile = setup.start(&[&[("KEYSTILE_DENY_FORMAT", "openai")], settings].concat()).await;
    Gateway::between(version, "openai.yaml", keystile, provider::start().await, &[]).await
}

/// A key with these scopes and further options.
fn key(gateway: &Gateway, scopes: &[&str], options: &[&str]) -> String {
    let scopes: Vec<_> = scopes.iter().flat_map(|scope| ["--scope", scope]).collect();
    gateway.keystile.setup.create_key("ada", &[&scopes, options].concat()).credential
}

/// A request, and the scope that it needs. None: any key will do.
const ROUTES: &[(&str, &str, Option<&str>)] = &[
    ("GET", "/v1/models", Some("models.list")),
    ("GET", "/api/v1/models", Some("models.list")),
    ("GET", "/api/v1/llm/models/gpt-4o", Some("models.list")),
    ("DELETE", "/v1/models/ft:gpt-4o", Some("api.other")),
    ("POST", "/api/v1/models", Some("api.other")),
    ("GET", "/v1/models%20", Some("api.other")),
    ("POST", "/v1/chat/completions", Some("chat.completions")),
    ("POST", "/api/v1/chat/completions", Some("chat.completions")),
    ("POST", "/api/v1/llm/chat/completions/", Some("chat.completions")),
    ("POST", "/V1/Ch%61t//completions?a=/v1/models", Some("chat.completions")),
    ("POST", "/v1/completions", Some("completions.create")),
    ("POST", "/v1/responses", Some("responses.create")),
    ("POST", "/v1/responses/resp_1/cancel", Some("responses.create")),
    ("POST", "/v1/messages", Some("messages.create")),
    ("POST", "/v1/messages/count_tokens?beta=true", Some("messages.create")),
    ("POST", "/v1/messages/batches", Some("batches")),
    ("POST", "/v1/batches", Some("batches")),
    ("POST", "/v1/embeddings", Some("embeddings.create")),
    ("POST", "/v1/moderations", Some("moderations.create")),
    ("POST", "/v1/images/generations", Some("images.generate")),
    ("POST", "/v1/images/edits", Some("images.edit")),
    ("POST", "/v1/images/variations", Some("images.edit")),
    ("POST", "/v1/audio/speech", Some("audio.speech")),
    ("POST", "/v1/audio/transcriptions", Some("audio.transcriptions")),
    ("POST", "/v1/audio/translations", Some("audio.translations")),
    ("POST", "/v1/files", Some("files")),
    ("GET", "/v1/files/file-1/content", Some("files")),
    ("POST", "/v1/uploads/up-1/parts", Some("files")),
    ("POST", "/api/v1/files/file-1/ask", Some("api.other")),
    ("GET", "/v1/realtime?model=gpt-4o", Some("realtime.connect")),
    ("POST", "/api/v1/chatbots/7/chat", Some("chatbot.chat")),
    ("POST", "/API/v1/agents/7/chat", Some("agent.chat")),
    ("POST", "/v1/fine_tuning/jobs", Some("api.other")),
    ("POST", "/v1", Some("api.other")),
    ("POST", "/api/v1/llm/rerank", Some("api.other")),
    ("GET", "/api/v1/documents/3", None),
    ("GET", "/", Some("api.other")),
    // What routers offer as well.
    ("POST", "/chat/completions", Some("api.other")),
    ("POST", "/openai/deployments/gpt-4o/chat/completions", Some("api.other")),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_path_needs_its_scope_in_every_spelling_and_no_other() {
    for version in VERSIONS {
        let gateway = gateway(version).await;
        // For each scope, a key with no other, and a key with all others. The last pair is for no scope.
        let all: Vec<_> = SCOPES.into_iter().chain(["api.other"]).collect();
        let keys = all.iter().map(|scope| Some(*scope)).chain([None]).map(|scope| {
            let others: Vec<_> = all.iter().filter(|other| Some(**other) != scope).copied().collect();
            (scope, (key(&gateway, scope.as_slice(), &[]), key(&gateway, &others, &[])))
        });
        let keys: BTreeMap<_, _> = keys.collect();
        for (method, path, scope) in ROUTES {
            let what = format!("Envoy {version}: {method} {path}");
            let (own, others) = &keys[scope];
            let denied = scope.map(|_| (403, "scope_missing".to_owned()));
            assert_eq!(denial(send(&gateway, method, path, own).await).await, None, "{what}");
            assert_eq!(denial(send(&gateway, method, path, others).await).await, denied, "{what}");
        }
    }
}

async fn send(gateway: &Gateway, method: &str, path: &str, key: &str) -> Response {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let request = gateway.request(method, path).header("x-api-key", key).body("{}");
    request.send().await.unwrap()
}

/// Status and code of a denial; none where the request reached the provider.
async fn denial(answer: Response) -> Option<(u16, String)> {
    let status = answer.status().as_u16();
    let Ok(body) = answer.json::<Value>().await else { return None };
    Some((status, body["error"]["code"].as_str()?.to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_for_some_models_are_denied_where_the_model_cannot_be_seen() {
    let gateway = gateway(NEWEST).await;
    let all: Vec<_> = SCOPES.into_iter().chain(["api.other"]).collect();
    let key = key(&gateway, &all, &["--allowed-model", "gpt-4o"]);
    let denied = Some((403, "model_not_allowed".to_owned()));
    for (method, path) in [
        ("DELETE", "/v1/models/ft:gpt-4o"),
        ("POST", "/v1/models"),
        ("POST", "/v1/batches"),
        ("POST", "/v1/messages/batches"),
        ("POST", "/v1/images/edits"),
        ("POST", "/v1/files/file-1/ask"),
        ("POST", "/v1/responses/compact"),
        ("POST", "/v1/fine_tuning/jobs"),
        ("POST", "/api/v1/agents/7/chat"),
        ("POST", "/api/v1/elsewhere"),
    ] {
        assert_eq!(denial(send(&gateway, method, path, &key).await).await, denied, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_for_some_models_can_list_models_with_every_configuration_that_reads_bodies() {
    for config in ["body.yaml", "routes.yaml", "openai.yaml"] {
        let setup = Setup::new();
        setup.create_user("ada");
        let key =
            setup.create_key("ada", &["--scope", "models.list", "--allowed-model", "gpt-4o"]).credential;
        let gateway = Gateway::start(NEWEST, config, setup, &[]).await;
        for path in ["/v1/models", "/v1/models/gpt-4o"] {
            let answer = gateway.get(path).bearer_auth(&key).send().await.unwrap();
            assert_eq!(answer.status(), 200, "{config}: {path}");
            let seen: Value = answer.json().await.unwrap();
            assert_eq!(seen["headers"]["x-auth-allowed-models"], "gpt-4o", "{config}");
        }
        let elsewhere = gateway.get("/v1/elsewhere").bearer_auth(&key).send().await.unwrap();
        assert_eq!(elsewhere.status(), 403, "{config}");
        let delete = gateway.request(Method::DELETE, "/v1/models/gpt-4o").bearer_auth(&key);
        assert_eq!(delete.send().await.unwrap().status(), 403, "{config}");
        assert_eq!(gateway.get("/v1/models").send().await.unwrap().status(), 401, "{config}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn preflight_requests_are_answered_before_the_check_and_denials_can_be_read_by_pages() {
    for version in VERSIONS {
        let gateway = gateway(version).await;
        let preflight = |origin: &'static str| {
            let request = gateway.request(Method::OPTIONS, "/v1/chat/completions").header("origin", origin);
            let request = request.header("access-control-request-method", "POST");
            request
                .header("access-control-request-headers", "authorization, content-type, x-stainless-os")
                .send()
        };
        let answer = preflight("https://app.example.com").await.unwrap();
        assert_eq!(answer.status(), 200, "Envoy {version}");
        assert_eq!(answer.headers()["access-control-allow-origin"], "https://app.example.com");
        assert_eq!(answer.headers()["access-control-allow-headers"], "authorization, *");
        assert!(answer.headers()["access-control-allow-methods"].to_str().unwrap().contains("POST"));
        // Of other origins, and without the form of a preflight request, it is checked like any request.
        let other = preflight("https://elsewhere.example.com").await.unwrap();
        assert_eq!(other.status(), 401, "Envoy {version}");
        assert_eq!(other.headers().get("access-control-allow-origin"), None);
        let plain = gateway.request(Method::OPTIONS, "/v1/chat/completions").send().await.unwrap();
        assert_eq!(plain.status(), 401, "Envoy {version}");
        assert_eq!(gateway.upstream.requests(), 0, "Envoy {version}");

        let request = gateway.get("/v1/models").header("origin", "https://app.example.com");
        let denied = request.send().await.unwrap();
        assert_eq!(denied.status(), 401);
        assert_eq!(denied.headers()["access-control-allow-origin"], "https://app.example.com");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn web_sockets_need_a_key_and_a_route_that_allows_them() {
    for version in VERSIONS {
        let gateway = gateway(version).await;
        let (good, other) = (key(&gateway, &SCOPES, &[]), key(&gateway, &["chat.completions"], &[]));
        let limited = key(&gateway, &SCOPES, &["--allowed-model", "gpt-4o"]);
        for (path, key, status) in [
            ("/v1/realtime?model=gpt-4o", good.as_str(), 101),
            ("/v1/responses", &good, 101),
            ("/api/v1/chatbots/7/chat", &good, 101),
            ("/v1/realtime?model=gpt-4o", "ks_nobodysKey", 401),
            ("/v1/realtime?model=gpt-4o", &other, 403),
            ("/v1/realtime?model=gpt-4o", &limited, 403),
            ("/v1/responses", &limited, 403),
            ("/v1/responses/resp_1", &limited, 403),
            // No key lists the models, or uploads, over a WebSocket.
            ("/v1/models", &good, 403),
            ("/v1/files", &good, 403),
            ("/v1/chat/completions", &good, 403),
        ] {
            let before = gateway.upstream.requests();
            let answer = upgrade(&gateway, path, key).await;
            assert_eq!(answer.status(), status, "Envoy {version}: {path}");
            assert_eq!(gateway.upstream.requests() - before, usize::from(status == 101), "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn web_socket_of_a_page_brings_its_key_in_the_query() {
    let sources = [("KEYSTILE_CREDENTIAL_SOURCES", "bearer,header:x-api-key,query:api_key")];
    let gateway = gateway_with(NEWEST, &sources).await;
    let good = key(&gateway, &SCOPES, &[]);
    for (key, status) in [(good.as_str(), 101), ("ks_nobodysKey", 401)] {
        let request = gateway.get(&format!("/v1/realtime?model=gpt-4o&api_key={key}"));
        assert_eq!(web_socket(request).await.status(), status);
    }
}

async fn upgrade(gateway: &Gateway, path: &str, key: &str) -> Response {
    web_socket(gateway.get(path).bearer_auth(key)).await
}

async fn web_socket(request: RequestBuilder) -> Response {
    let request = request.header("connection", "upgrade").header("upgrade", "websocket");
    let request =
        request.header("sec-websocket-version", "13").header("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==");
    request.send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn body_that_is_too_large_to_be_checked_is_413_and_paths_with_a_semicolon_are_400() {
    for version in VERSIONS {
        let gateway = gateway(version).await;
        let key = key(&gateway, &SCOPES, &[]);
        for (bytes, status) in [(7 << 20, 200), (9 << 20, 413)] {
            let body = format!(r#"{{"model":"gpt-4o","messages":"{}"}}"#, "x".repeat(bytes));
            let request = gateway.request(Method::POST, "/v1/chat/completions").bearer_auth(&key).body(body);
            assert_eq!(request.send().await.unwrap().status(), status, "Envoy {version}");
        }
        for path in ["/v1/models;/x", "/v1/models/x;/chat/completions", "/;a/v1/models"] {
            let answer = gateway.get(path).bearer_auth(&key).send().await.unwrap();
            assert_eq!(answer.status(), 400, "Envoy {version}: {path}");
        }
        assert_eq!(gateway.upstream.requests(), 1, "Envoy {version}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_for_some_chatbots_and_agents_must_name_one_of_them() {
    let gateway = gateway(NEWEST).await;
    let limits = ["--allowed-chatbot", "7", "--allowed-agent", "clerk"];
    let key = key(&gateway, &SCOPES, &limits);
    for (path, denied) in [
        ("/api/v1/chatbots/7/chat", None),
        ("/api/v1/chatbots/8/chat", Some("chatbot_not_allowed")),
        ("/api/v1/agents/clerk/chat", None),
        ("/api/v1/Agents/boss/chat", Some("agent_not_allowed")),
    ] {
        let denied = denied.map(|code| (403, code.to_owned()));
        assert_eq!(denial(send(&gateway, "POST", path, &key).await).await, denied, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_gets_its_own_key_in_place_of_the_callers() {
    let page = read("docs/guides/language-models.md");
    let (_, block) = page.split_once("```yaml\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let value = "%ENVIRONMENT(PROVIDER_KEY)%";
    assert!(block.contains(value));
    let own = format!("domains: [\"*\"]\n{}", block.replace(value, "%ENVIRONMENT(PATH)%"));
    for version in VERSIONS {
        let setup = Setup::new();
        setup.create_user("ada");
        let key = setup.create_key("ada", &["--scope", "models.list"]).credential;
        let edits = [("domains: [\"*\"]", own.as_str())];
        let gateway = Gateway::before(version, "openai.yaml", setup.start(&[]).await, &edits).await;
        let answer = gateway.get("/v1/models").bearer_auth(&key).send().await.unwrap();
        let seen: Value = answer.json().await.unwrap();
        let expected = format!("Bearer {}", std::env::var("PATH").unwrap());
        assert_eq!(seen["headers"]["authorization"], expected, "Envoy {version}");
    }
}

#[test]
fn guide_lists_each_scope_of_the_route_table() {
    let page = read("docs/guides/language-models.md");
    let rows = page.lines().filter(|line| line.starts_with("| ")).filter_map(|row| row.split(" | ").nth(1));
    let listed: BTreeSet<_> = rows.filter_map(|cell| cell.strip_prefix('`')?.strip_suffix('`')).collect();
    let config = read("envoy/openai.yaml");
    let scopes = config.split("keystile.scopes: \"").skip(1).map(|rest| rest.split('"').next().unwrap());
    assert_eq!(listed, scopes.collect());
    assert_eq!(listed, SCOPES.into_iter().chain(["api.other"]).collect());
}
