//! OpenAI's and Anthropic's own Python packages, through `envoy/openai.yaml`.

use std::{collections::BTreeMap, path::Path, process::Command};

use serde_json::{Value, json};

use super::{NEWEST, SCOPES, gateway, key};
use crate::harness::{
    envoy::{Gateway, VERSIONS},
    process::program,
};

const NOT_CHECKED: &str = "The API key is restricted to some models. The model of a multipart upload or a WebSocket \
                           cannot be checked, so the key cannot be used for it.";

/// What the clients return where the provider answers.
fn answers() -> BTreeMap<&'static str, Value> {
    BTreeMap::from([
        ("openai.models", json!(["gpt-4o"])),
        ("openai.chat", json!("gpt-4o for ada")),
        ("openai.chat_stream", json!("gpt-4o |for ada")),
        ("openai.responses", json!("gpt-4o for ada")),
        ("openai.responses_stream", json!("gpt-4o |for ada")),
        ("openai.responses_stored", json!("resp_1")),
        ("openai.embeddings", json!([0.5])),
        ("openai.moderations", json!(false)),
        ("openai.images", json!("gpt-4o for ada")),
        ("openai.speech", json!("gpt-4o for ada")),
        (LONG_TRANSCRIPTION, json!(true)),
        ("openai.transcription_short", json!(true)),
        ("openai.upload", json!(true)),
        ("openai.realtime", json!("ada: response.create")),
        ("anthropic.models", json!(["claude-opus"])),
        ("anthropic.messages", json!("claude-opus for ada")),
        ("anthropic.messages_stream", json!("claude-op|us for ada")),
        ("anthropic.count_tokens", json!(3)),
    ])
}

/// Calls that name a model where Keystile does not read it.
const UNREADABLE: [&str; 2] = ["openai.transcription_short", "openai.realtime"];

/// Envoy denies it before it has all of the body, and closes the connection. Some clients do not read the answer then.
const LONG_TRANSCRIPTION: &str = "openai.transcription";

/// Calls that name no model.
const WITHOUT_MODEL: [&str; 4] =
    ["openai.models", "openai.responses_stored", "openai.upload", "anthropic.models"];

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_both_providers_get_answers_streams_uploads_and_web_sockets() {
    for version in VERSIONS {
        let gateway = gateway(version).await;
        let outcomes = calls(&gateway, &key(&gateway, &SCOPES, &[]), &[]);
        let expected: BTreeMap<_, _> =
            answers().into_iter().map(|(name, answer)| (name.to_owned(), answer)).collect();
        assert_eq!(outcomes, expected, "Envoy {version}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_with_a_key_for_some_models_can_do_all_that_names_one_of_them_in_json() {
    let gateway = gateway(NEWEST).await;
    let models = ["--allowed-model", "gpt-4o", "--allowed-model", "claude-*"];
    for (name, outcome) in calls(&gateway, &key(&gateway, &SCOPES, &models), &all_but_the_long_one()) {
        let expected = if UNREADABLE.contains(&name.as_str()) {
            forbidden(&name, "model_not_allowed", NOT_CHECKED)
        } else {
            answers()[name.as_str()].clone()
        };
        assert_eq!(outcome, expected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_with_a_key_for_other_models_can_list_and_upload_only() {
    let gateway = gateway(NEWEST).await;
    for (name, outcome) in
        calls(&gateway, &key(&gateway, &SCOPES, &["--allowed-model", "o3"]), &all_but_the_long_one())
    {
        let expected = if WITHOUT_MODEL.contains(&name.as_str()) {
            answers()[name.as_str()].clone()
        } else if UNREADABLE.contains(&name.as_str()) {
            forbidden(&name, "model_not_allowed", NOT_CHECKED)
        } else {
            forbidden(&name, "model_not_allowed", "The API key may not be used with this model.")
        };
        assert_eq!(outcome, expected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_raise_their_own_errors_for_denials() {
    let gateway = gateway(NEWEST).await;
    let spent = key(&gateway, &SCOPES, &["--budget-limit-cents", "0"]);
    let sentence = "The API key lacks a scope that this endpoint needs.";
    for (key, status, code, kind, message) in [
        ("ks_nobodysKey", 401, "invalid_credential", "authentication_error", "The API key is not valid."),
        (&spent, 402, "budget_exhausted", "insufficient_quota", "The budget of the API key is spent."),
        (&key(&gateway, &["models.list"], &[]), 403, "scope_missing", "permission_error", sentence),
    ] {
        let names = ["openai.chat", "openai.chat_stream", "openai.transcription_short", "anthropic.messages"];
        for (name, outcome) in calls(&gateway, key, &names) {
            let error = match status {
                401 => "AuthenticationError",
                402 if name.starts_with("openai.") => "APIStatusError",
                402 => "PaymentRequiredError",
                _ => "PermissionDeniedError",
            };
            let expected =
                json!({"error": error, "status": status, "code": code, "type": kind, "message": message});
            assert_eq!(outcome, expected, "{name}");
        }
    }
    assert_eq!(gateway.upstream.requests(), 0);
}

/// What became of the clients' calls: those named, or all. Both kinds of client must agree.
fn calls(gateway: &Gateway, key: &str, names: &[&str]) -> BTreeMap<String, Value> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let packages = project.join(".tools/model-clients-2026.11");
    assert!(packages.exists(), "{} is not there: run tools/fetch-model-clients", packages.display());
    let output = Command::new(program("python3", []))
        .arg(project.join("tests/integration/language_models/clients.py"))
        .args([&gateway.url, key])
        .args(names)
        // Nothing of the environment: it may have keys and addresses of the real providers.
        .env_clear()
        .env("PYTHONPATH", packages)
        .env("HOME", gateway.keystile.setup.path(""))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let outcomes: BTreeMap<String, [Value; 2]> = serde_json::from_slice(&output.stdout).unwrap();
    let agreed = outcomes.into_iter().map(|(name, [sync, asynchronous])| {
        assert_eq!(sync, asynchronous, "{name}");
        (name, sync)
    });
    agreed.collect()
}

fn all_but_the_long_one() -> Vec<&'static str> {
    answers().into_keys().filter(|name| *name != LONG_TRANSCRIPTION).collect()
}

/// A denial that clients raise as their error for 403.
fn forbidden(name: &str, code: &str, message: &str) -> Value {
    let error = if name == "openai.realtime" { "InvalidStatus" } else { "PermissionDeniedError" };
    json!({"error": error, "status": 403, "code": code, "type": "permission_error", "message": message})
}
