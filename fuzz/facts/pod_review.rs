//! A pod is only added to, the patch applies, and a second review adds nothing. The input is a pod as JSON.

use std::sync::LazyLock;

use clap::{Args, Command, FromArgMatches};
use json_patch::PatchOperation;
use keystile::{
    config::InjectOptions,
    injector::{Scope, Sidecar, review},
};
use serde_json::Value;

static SIDECAR: LazyLock<Sidecar> = LazyLock::new(|| {
    let command = InjectOptions::augment_args(Command::new("inject"));
    let matches = command.get_matches_from(["inject", "--image", "keystile:1", "--self-signed", "x"]);
    Sidecar::from(&InjectOptions::from_arg_matches(&matches).expect("complete"))
});

/// Fails if a fact does not hold for this input.
pub fn check(input: &[u8]) {
    let Ok(mut pod) = serde_json::from_slice::<Value>(input) else { return };
    let Ok(injection) = review(&pod, Scope::EnabledNamespace, &SIDECAR) else { return };
    let only_adds = injection.patch.0.iter().all(|operation| matches!(operation, PatchOperation::Add(_)));
    assert!(only_adds, "{}", injection.patch);
    // What is no pod is not patched: the API server sends none.
    if json_patch::patch(&mut pod, &injection.patch).is_err() {
        assert!(!is_pod(&pod), "{} does not apply", injection.patch);
        return;
    }
    let again = review(&pod, Scope::EnabledNamespace, &SIDECAR).expect("what was injected is accepted");
    assert!(again.patch.0.is_empty() || !is_pod(&pod), "a second review adds {}", again.patch);
}

/// Whether the API server would let it pass as far as types are concerned.
fn is_pod(pod: &Value) -> bool {
    let lists = ["containers", "initContainers", "volumes"];
    let is_list = |name: &&str| match &pod["spec"][*name] {
        Value::Null => true,
        Value::Array(entries) => entries.iter().all(|entry| entry["name"].is_string()),
        _ => false,
    };
    pod.is_object() && pod["spec"].is_object() && pod["metadata"].is_object() && lists.iter().all(is_list)
}
