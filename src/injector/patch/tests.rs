//! Pods and their injection.

use clap::{Args, Command, FromArgMatches};
use json_patch::PatchOperation;
use serde_json::{Value, json};

use super::{Injection, InvalidPod, Scope, Sidecar, review};
use crate::config::InjectOptions;

mod property;
mod table;

/// The defaults of the command line.
fn sidecar() -> Sidecar {
    let command = InjectOptions::augment_args(Command::new("inject"));
    let matches = command.get_matches_from(["inject", "--image", "keystile:1", "--self-signed", "x"]);
    Sidecar::from(&InjectOptions::from_arg_matches(&matches).expect("complete"))
}

/// The injection of a pod in an enabled namespace.
fn injection(pod: &Value) -> Injection {
    review(pod, Scope::EnabledNamespace, &sidecar()).expect("not refused")
}

/// Why a pod in an enabled namespace is not admitted.
fn refusal(pod: &Value) -> String {
    let InvalidPod(message) = review(pod, Scope::EnabledNamespace, &sidecar()).expect_err("refused");
    message
}

/// A pod after its injection.
fn injected(pod: &Value) -> Value {
    patched(pod, &injection(pod).patch)
}

fn patched(pod: &Value, patch: &[PatchOperation]) -> Value {
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, patch).expect("applies");
    pod
}

/// A pod with an Envoy and an application.
fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "generateName": "cart-", "labels": { "app": "cart" } },
        "spec": {
            "containers": [
                { "name": "app", "image": "app:1", "ports": [{ "containerPort": 8080 }] },
                { "name": "envoy", "image": "envoy:1", "volumeMounts": [{ "name": "config", "mountPath": "/etc/envoy" }] },
            ],
            "volumes": [{ "name": "config", "configMap": { "name": "envoy" } }],
        },
    })
}

/// The same, with a part of it set to something else.
fn pod_with(pointer: &str, value: Value) -> Value {
    let mut pod = pod();
    set(&mut pod, pointer, value);
    pod
}

fn set(object: &mut Value, pointer: &str, value: Value) {
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    if object.pointer(parent).is_none() {
        set(object, parent, json!({}));
    }
    match object.pointer_mut(parent).expect("made") {
        Value::Array(items) => match name.parse() {
            Ok(index) if index < items.len() => {
                let index: usize = index;
                items[index] = value;
            }
            _ => items.push(value),
        },
        object => object[name.replace("~1", "/")] = value,
    }
}

/// The sidecar in an injected pod.
fn container(pod: &Value) -> &Value {
    let all = ["initContainers", "containers"].into_iter().filter_map(|list| pod["spec"][list].as_array());
    all.flatten().find(|container| container["name"] == "keystile").expect("injected")
}
