//! What the injector makes of the examples' pods is what Kubernetes takes, and what Keystile understands.

use std::{collections::BTreeSet, time::Duration};

use ::keystile::{
    config::{InjectOptions, ServeOptions},
    injector::{Scope, Sidecar, review},
};
use clap::{Args, Command, FromArgMatches};
use serde_json::{Value, json};

use super::manifests::validate;
use crate::harness::{
    keystile,
    service::Setup,
    tools::{read, yaml},
    until,
};

/// What the manifests name.
pub(super) const IMAGE: &str = concat!("keystile:", env!("CARGO_PKG_VERSION"));

/// The defaults of the command line.
pub(super) fn sidecar() -> Sidecar {
    let command = InjectOptions::augment_args(Command::new("inject"));
    let matches = command.get_matches_from(["inject", "--image", IMAGE, "--self-signed", "x"]);
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
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &injection.patch).unwrap();
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

#[tokio::test]
async fn injected_sidecar_runs_with_its_settings_and_answers_its_probes() {
    let setup = Setup::new();
    setup.run(&["migrate"]);
    let pod = injected(&pod_of("deployment")).to_string();
    // Here the socket's folder is the test's, and the image's binary the built one.
    let pod = pod.replace("/run/keystile", setup.path("").to_str().unwrap().trim_end_matches('/'));
    assert!(pod.contains("\"[::]:9192\""), "every address, of IPv6 and IPv4");
    let pod = pod.replace("[::]:9192", &setup.admin.to_string());
    let sidecar = serde_json::from_str::<Value>(&pod).unwrap()["spec"]["initContainers"][0].take();
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(texts(&sidecar["args"]), ["serve"]);
    let variables = sidecar["env"].as_array().unwrap().iter();
    let plain =
        variables.filter_map(|variable| Some((variable["name"].as_str()?, variable["value"].as_str()?)));
    let plain: Vec<_> = plain.collect();
    let service = setup.start(&plain).await;
    let socket = service.setup.socket();
    assert!(socket.exists(), "{}", socket.display());

    for probe in ["startupProbe", "readinessProbe"] {
        let command = texts(&sidecar[probe]["exec"]["command"]);
        assert_eq!(command[0], "/usr/local/bin/keystile", "where the Dockerfile puts it");
        let arguments: Vec<_> = command[1..].iter().map(String::as_str).collect();
        until(probe, Duration::from_secs(10), async || {
            let mut run = keystile::command(&arguments, "");
            run.envs(plain.iter().copied()).status().unwrap().success()
        })
        .await;
    }
    assert!(read("Dockerfile").contains(" /usr/local/bin/keystile\n"));
}

#[test]
fn every_variable_of_a_sidecar_is_a_setting() {
    let command = ServeOptions::augment_args(Command::new("serve"));
    let settings: BTreeSet<_> = command.get_arguments().filter_map(|argument| argument.get_env()).collect();
    let mut pod = pod_of("deployment");
    pod["metadata"]["annotations"] = json!({ "keystile.dev/log-level": "debug" });
    let pod = injected(&pod);
    let variables = pod["spec"]["initContainers"][0]["env"].as_array().unwrap();
    let names = variables.iter().map(|variable| variable["name"].as_str().unwrap());
    let unknown: Vec<_> = names.filter(|name| !settings.contains(std::ffi::OsStr::new(name))).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn example_fits_the_envoy_configuration_that_it_is_for() {
    let envoy = read("envoy/uds.yaml");
    let pod = pod_of("deployment");
    let port = &pod["spec"]["containers"][1]["ports"][0]["containerPort"];
    assert!(envoy.contains(&format!("socket_address: {{address: 0.0.0.0, port_value: {port}}}")), "{port}");
    let injected = injected(&pod);
    let folder = injected["spec"]["containers"][1]["volumeMounts"][1]["mountPath"].as_str().unwrap();
    assert!(envoy.contains(&format!("pipe: {{path: {folder}/keystile.sock}}")), "{folder}");
}
