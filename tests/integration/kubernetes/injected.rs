//! What the injector makes of the examples' pods is what Kubernetes takes.

use clap::{Args, Command, FromArgMatches};
use keystile::{
    config::InjectOptions,
    injector::{Scope, Sidecar, review},
};
use serde_json::{Value, json};

use super::manifests::validate;
use crate::harness::tools::{read, yaml};

/// The defaults of the command line.
pub(super) fn sidecar() -> Sidecar {
    let command = InjectOptions::augment_args(Command::new("inject"));
    let matches = command.get_matches_from(["inject", "--image", "keystile:0.1.0", "--self-signed", "x"]);
    Sidecar::from(&InjectOptions::from_arg_matches(&matches).unwrap())
}

/// The pod of an example's Deployment or Job, as its controller creates it.
pub(super) fn pod_of(example: &str) -> Value {
    let objects = yaml(&read(&format!("k8s/examples/{example}.yaml")));
    let workload = objects.iter().find(|object| object["spec"]["template"].is_object()).unwrap();
    let mut pod = workload["spec"]["template"].clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!(example);
    pod["metadata"]["namespace"] = json!("shop");
    pod
}

/// After the injector's patch, and without a word of warning from it.
pub(super) fn injected(pod: &Value) -> Value {
    let injection = review(pod, Scope::LabelledPods, &sidecar()).unwrap();
    assert_eq!(injection.warnings, [] as [&str; 0]);
    let patch: json_patch::Patch = serde_json::from_value(json!(injection.patch)).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}

#[test]
fn injected_pods_are_valid_for_the_oldest_and_the_newest_kubernetes() {
    for example in ["deployment", "job"] {
        let pod = injected(&pod_of(example));
        assert_eq!(pod["spec"]["initContainers"][0]["name"], "keystile");
        for version in ["1.29", "1.37"] {
            validate(example, &pod.to_string(), version);
        }
    }
}
