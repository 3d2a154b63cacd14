//! Records that say more than headers hold, through real Envoy.

use reqwest::{Method, RequestBuilder};

use crate::harness::{
    envoy::{Gateway, VERSIONS},
    service::Setup,
    upstream::Seen,
};

/// A key that may use so many models.
fn with_models(count: usize) -> (Setup, String) {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &["--allowed-model", "gpt-*"]);
    let models: Vec<_> = (0..count).map(|number| format!("vendor/model-number-{number}")).collect();
    let models = serde_json::to_string(&models).unwrap();
    setup.execute(&format!("UPDATE api_keys SET allowed_models = '{models}' WHERE id = {}", key.id));
    (setup, key.credential)
}

/// A request for one of the models.
fn chat(gateway: &Gateway, key: &str) -> RequestBuilder {
    let request = gateway.request(Method::POST, "/v1/chat/completions").header("x-api-key", key);
    request.header("content-type", "application/json").body(r#"{"model": "vendor/model-number-3"}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn request_of_a_key_with_many_models_reaches_the_upstream() {
    for (version, models) in [(VERSIONS[0], 1500), (VERSIONS[1], 400), (VERSIONS[1], 1500)] {
        let (setup, key) = with_models(models);
        let gateway = Gateway::start(version, "body.yaml", setup, &[]).await;
        // From the database, and then from memory.
        for _ in 0..2 {
            let answer = chat(&gateway, &key).send().await.unwrap();
            assert_eq!(answer.status(), 200, "Envoy {version}, {models} models");
            let seen: Seen = answer.json().await.unwrap();
            assert_eq!(seen.headers["x-auth-allowed-models"], "!truncated");
            assert_eq!(seen.headers["x-auth-truncated"], "x-auth-allowed-models");
        }
        let metrics = gateway.keystile.setup.metrics().await;
        let counted = "keystile_truncated_headers_total{header=\"x-auth-allowed-models\"}";
        assert!(metrics.contains(counted), "{metrics}");
        let log = gateway.keystile.setup.log();
        assert_eq!(log.matches("x-auth-allowed-models").count(), 1, "once for the key:\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_of_a_key_of_which_everything_is_long_reaches_the_upstream() {
    let (setup, key) = with_models(1500);
    let list = serde_json::to_string(&(0..350).map(|n| format!("item-{n:03}")).collect::<Vec<_>>()).unwrap();
    let long = "n".repeat(3900);
    setup.execute(&format!(
        "UPDATE api_keys SET name = '{long}', scopes = '{list}', tags = '{list}', permissions = '{list}',
            allowed_chatbots = '{list}', allowed_agents = '{list}', budget_type = '{long}';
        UPDATE users SET username = '{long}', email = '{long}@example.com', role = '{long}'"
    ));
    let gateway = Gateway::start(VERSIONS[1], "body.yaml", setup, &[]).await;
    for _ in 0..2 {
        // With much of its own, as browsers send it.
        let request = chat(&gateway, &key).header("x-more", "m".repeat(20_000));
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let seen: Seen = answer.json().await.unwrap();
        let ours = seen.headers.iter().filter(|(name, _)| name.starts_with("x-auth-"));
        let length: usize = ours.map(|(name, value)| name.len() + value.len()).sum();
        assert!(length < 20_000, "{length}");
        assert!(seen.headers.contains_key("x-auth-allowed-models"), "a restriction is never left out");
        let named: Vec<_> = seen.headers["x-auth-truncated"].split(',').collect();
        for (name, value) in &seen.headers {
            assert_eq!(value == "!truncated", named.contains(&name.as_str()), "{name}");
        }
    }
}
