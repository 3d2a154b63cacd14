//! What denied callers get to read, in the language that they speak, through real Envoy.

use reqwest::Method;
use serde_json::{Value, json};
use tonic::{Code, Request, Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::harness::{
    envoy::{Gateway, VERSIONS},
    service::Setup,
};

const SENTENCE: &str = "The API key lacks a scope that this endpoint needs.";

/// A gateway, and a key without scopes.
async fn gateway(version: &str, format: &str) -> (Gateway, String) {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]).credential;
    let settings = [("KEYSTILE_DENY_FORMAT", format)];
    (Gateway::start(version, "routes.yaml", setup, &settings).await, key)
}

#[tokio::test(flavor = "multi_thread")]
async fn denial_comes_in_the_form_that_is_set() {
    for (version, format, content_type) in [
        (VERSIONS[0], "problem", "application/problem+json"),
        (VERSIONS[1], "problem", "application/problem+json"),
        (VERSIONS[1], "openai", "application/json"),
        (VERSIONS[1], "text", "text/plain; charset=utf-8"),
    ] {
        let (gateway, key) = gateway(version, format).await;
        let request = gateway.get("/admin").bearer_auth(key).header("x-request-id", "r-1");
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 403);
        assert_eq!(answer.headers()["content-type"], content_type);
        let text = answer.text().await.unwrap();
        // Envoy makes an id of its own for requests from outside.
        let id = id_in(&text);
        let expected = match format {
            "problem" => json!({
                "type": "urn:keystile:denial:scope_missing", "title": "Forbidden", "status": 403,
                "detail": SENTENCE, "code": "scope_missing", "request_id": id,
            }),
            "openai" => json!({"error": {
                "message": SENTENCE, "type": "permission_error", "param": null,
                "code": "scope_missing", "request_id": id,
            }}),
            _ => {
                assert_eq!(text, format!("scope_missing: {SENTENCE} [{id}]\n"));
                continue;
            }
        };
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
    }
}

/// The id of a request, a UUID, somewhere in this text.
fn id_in(text: &str) -> &str {
    let mut words = text.split(|c: char| !c.is_ascii_hexdigit() && c != '-');
    words.find(|word| word.len() == 36).expect("an id")
}

#[tokio::test(flavor = "multi_thread")]
async fn head_is_answered_as_get_is_but_without_a_body() {
    for version in VERSIONS {
        let (gateway, key) = gateway(version, "problem").await;
        let get = gateway.get("/admin").bearer_auth(&key).send().await.unwrap();
        let head = gateway.request(Method::HEAD, "/admin").bearer_auth(&key).send().await.unwrap();
        assert_eq!(head.status(), 403);
        for header in ["content-type", "content-length"] {
            assert_eq!(head.headers()[header], get.headers()[header], "Envoy {version}: {header}");
        }
        assert_eq!(head.bytes().await.unwrap(), "");
        // The connection goes on: no body was left on it.
        let nobody = gateway.request(Method::HEAD, "/v1").send().await.unwrap();
        assert_eq!(nobody.status(), 401);
        assert_eq!(nobody.headers()["www-authenticate"], "Bearer realm=\"api\"");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_callers_are_denied_in_grpc() {
    for version in VERSIONS {
        let (gateway, key) = gateway(version, "problem").await;
        let status = grpc(&gateway, None).await;
        assert_eq!(status.code(), Code::Unauthenticated, "Envoy {version}: {status:?}");
        assert!(status.message().starts_with("missing_credential: This API needs an API key;"), "{status:?}");
        let other = gateway.keystile.setup.create_key("ada", &["--allowed-endpoint", "/elsewhere"]);
        let status = grpc(&gateway, Some(&other.credential)).await;
        assert_eq!(status.code(), Code::PermissionDenied, "Envoy {version}: {status:?}");
        let sentence = "endpoint_not_allowed: The API key may not be used for this endpoint. [";
        assert!(status.message().starts_with(sentence) && status.message().ends_with(']'), "{status:?}");
        let broke = gateway.keystile.setup.create_key("ada", &["--budget-limit-cents", "0"]);
        assert_eq!(grpc(&gateway, Some(&broke.credential)).await.code(), Code::ResourceExhausted);
        // The upstream speaks no gRPC, but it is the one that answers.
        let before = gateway.upstream.requests();
        grpc(&gateway, Some(&key)).await;
        assert_eq!(gateway.upstream.requests(), before + 1);
    }
}

async fn grpc(gateway: &Gateway, key: Option<&str>) -> Status {
    let channel = Channel::from_shared(gateway.url.clone()).unwrap().connect().await.unwrap();
    let mut request = Request::new(HealthCheckRequest::default());
    if let Some(key) = key {
        request.metadata_mut().insert("x-api-key", key.parse().unwrap());
    }
    HealthClient::new(channel).check(request).await.unwrap_err()
}
