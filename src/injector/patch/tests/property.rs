//! Properties of every pod's injection.

use json_patch::{Patch, RemoveOperation};
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::*;

proptest! {
    #[test]
    fn patch_applies_once_and_can_be_taken_back(pod in any_pod()) {
        let Ok(Injection { patch, .. }) = review(&pod, Scope::EnabledNamespace, &sidecar()) else { return Ok(()) };
        let after = patched(&pod, &patch);
        prop_assert_eq!(taken_back(&after, &patch), pod);
        let again = review(&after, Scope::EnabledNamespace, &sidecar()).expect("its own names are no conflict");
        prop_assert_eq!(again.patch, Patch::default());
    }
}

/// The pod before the patch: its additions are removed in reverse.
fn taken_back(pod: &Value, patch: &[PatchOperation]) -> Value {
    let removal =
        |added: &PatchOperation| PatchOperation::Remove(RemoveOperation { path: added.path().to_buf() });
    patched(pod, &patch.iter().rev().map(removal).collect::<Vec<_>>())
}

fn any_pod() -> impl Strategy<Value = Value> {
    let spec = (
        vec(any_container(), 1..4),
        option::of(vec(any_container(), 0..3)),
        option::of(vec(any_volume(), 0..3)),
        option::of(select(vec!["Always", "OnFailure", "Never"])),
        any::<bool>(),
    );
    let spec = spec.prop_map(|(containers, init, volumes, restart, unknown)| {
        object([
            ("containers", Some(json!(containers))),
            ("initContainers", init.map(Value::from)),
            ("volumes", volumes.map(Value::from)),
            ("restartPolicy", restart.map(Value::from)),
            ("fieldOfTheFuture", unknown.then(|| json!({ "kept": [1, 2.5, null] }))),
        ])
    });
    let metadata = option::of(vec(any_annotation(), 0..4)).prop_map(|annotations| {
        let annotations = annotations.map(|all| all.into_iter().collect::<serde_json::Map<_, _>>());
        object([("generateName", Some(json!("p-"))), ("annotations", annotations.map(Value::from))])
    });
    (spec, metadata).prop_map(|(spec, metadata)| json!({ "metadata": metadata, "spec": spec }))
}

fn any_container() -> impl Strategy<Value = Value> {
    let names = vec!["app", "envoy", "istio-proxy", "proxy", "keystile"];
    let mount = (select(vec!["data", "keystile-run"]), select(vec!["/data", "/run/keystile"]));
    let mount = mount.prop_map(|(name, path)| json!({ "name": name, "mountPath": path }));
    let amount = option::of(select(vec!["1", "500m", "1Gi"]));
    (select(names), option::of(vec(mount, 0..3)), amount, option::of(select(vec![8080, 9192]))).prop_map(
        |(name, mounts, amount, port)| {
            let resources = amount.map(|amount| json!({ "limits": { "cpu": amount, "memory": amount } }));
            object([
                ("name", Some(json!(name))),
                ("volumeMounts", mounts.map(Value::from)),
                ("resources", resources),
                ("ports", port.map(|port| json!([{ "containerPort": port }]))),
            ])
        },
    )
}

fn any_volume() -> impl Strategy<Value = Value> {
    let names = vec!["data", "keystile-run", "keystile-config", "keystile-no-token"];
    (select(names), select(vec!["emptyDir", "projected", "hostPath"]))
        .prop_map(|(name, kind)| object([("name", Some(json!(name))), (kind, Some(json!({})))]))
}

fn any_annotation() -> impl Strategy<Value = (String, Value)> {
    let names = vec![
        "note",
        "prometheus.io/scrape",
        "prometheus.io/port",
        "keystile.dev/status",
        "keystile.dev/envoy-container",
        "keystile.dev/native-sidecar",
        "keystile.dev/config",
    ];
    let values = vec!["true", "false", "proxy", "9192"];
    (select(names), select(values)).prop_map(|(name, value)| (name.to_owned(), json!(value)))
}

fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let present = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(present.collect())
}
