//! Admission policies, evaluated by an interpreter of their language, CEL.

use std::sync::Arc;

use cel::{Context, Program, extractors::This};
use serde_json::{Map, Value, json};

use super::injected::{injected, pod_of};
use crate::harness::tools::{read, yaml};

/// A policy of `k8s/policy/`.
struct Policy(Value);

impl Policy {
    fn read(path: &str) -> Self {
        Self(yaml(&read(&format!("k8s/policy/{path}.yaml"))).remove(0))
    }

    fn list(&self, pointer: &str) -> &[Value] {
        self.0.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// What the policy says against an object, in a namespace with these labels.
    fn complaints(&self, object: &Value, namespace: &Value) -> Vec<String> {
        let variables = self.variables(object, namespace);
        let refused = self.list("/spec/validations").iter().filter(|validation| {
            evaluate(validation["expression"].as_str().unwrap(), object, namespace, &variables) != json!(true)
        });
        refused.map(|validation| validation["message"].as_str().unwrap().to_owned()).collect()
    }

    /// Whether the policy is for this object.
    fn applies(&self, object: &Value, namespace: &Value) -> bool {
        let conditions = self.list("/spec/matchConditions").iter();
        conditions
            .map(|condition| {
                evaluate(condition["expression"].as_str().unwrap(), object, namespace, &json!({}))
            })
            .all(|holds| holds == json!(true))
    }

    /// The object after the policy's mutations. Each sees what those before it have made.
    fn mutated(&self, object: &Value, namespace: &Value) -> Value {
        let mut object = object.clone();
        for mutation in self.list("/spec/mutations") {
            let variables = self.variables(&object, namespace);
            let expression = untyped(mutation["jsonPatch"]["expression"].as_str().unwrap());
            let patch = evaluate(&expression, &object, namespace, &variables);
            let patch: json_patch::Patch = serde_json::from_value(patch).unwrap();
            json_patch::patch(&mut object, &patch).unwrap();
        }
        object
    }

    fn variables(&self, object: &Value, namespace: &Value) -> Value {
        let mut variables = Map::new();
        for variable in self.list("/spec/variables") {
            let expression = variable["expression"].as_str().unwrap();
            let value = evaluate(expression, object, namespace, &Value::Object(variables.clone()));
            variables.insert(variable["name"].as_str().unwrap().to_owned(), value);
        }
        Value::Object(variables)
    }
}

fn evaluate(expression: &str, object: &Value, namespace: &Value, variables: &Value) -> Value {
    let mut context = Context::default();
    context.add_variable("object", object).unwrap();
    context.add_variable("namespaceObject", namespace).unwrap();
    context.add_variable("variables", variables).unwrap();
    context.add_function("indexOf", index_of).unwrap();
    let program = Program::compile(expression).unwrap_or_else(|error| panic!("{error:?} in {expression}"));
    let value = program.execute(&context).unwrap_or_else(|error| panic!("{error} in {expression}"));
    value.json().unwrap()
}

/// The expression with plain maps in place of the API server's typed objects, which this interpreter
/// does not know: `Object.spec.volumes{name: "x"}` becomes `{"name": "x"}`.
fn untyped(expression: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    let mut plain = String::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' | '\'' => rest[1..].find(first).expect("a closed string") + 2,
            first if is_part(first) => rest.find(|c| !is_part(c)).unwrap_or(rest.len()),
            first => first.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        let is_type = after.starts_with('{') && (token == "JSONPatch" || token.starts_with("Object"));
        let is_field = is_part(first) && after.starts_with(':');
        match (is_type, is_field) {
            (true, _) => {}
            (_, true) => plain += &format!("{token:?}"),
            _ => plain += token,
        }
        rest = after;
    }
    plain
}

/// Of the API server's own library for lists.
fn index_of(This(list): This<Arc<Vec<cel::Value>>>, item: cel::Value) -> i64 {
    list.iter().position(|other| *other == item).map_or(-1, |index| i64::try_from(index).unwrap())
}

fn namespace(injection: Option<&str>) -> Value {
    let labels = injection.map_or(json!({}), |value| json!({ "keystile.dev/injection": value }));
    json!({ "metadata": { "name": "shop", "labels": labels } })
}

fn pod(label: Option<&str>) -> Value {
    let mut pod = pod_of("deployment");
    let labels = pod["metadata"]["labels"].as_object_mut().unwrap();
    labels.remove("keystile.dev/inject");
    label.map(|value| labels.insert("keystile.dev/inject".into(), json!(value)));
    pod
}

#[test]
fn pods_that_asked_in_vain_are_refused() {
    let policy = Policy::read("validating/pods");
    for (label, enabled, refused) in [
        (Some("true"), None, true),
        (Some("true"), Some("disabled"), true),
        (None, Some("enabled"), true),
        (Some("false"), Some("enabled"), false),
        (None, None, false),
        (None, Some("disabled"), false),
    ] {
        let complaints = policy.complaints(&pod(label), &namespace(enabled));
        assert_eq!(complaints.len(), usize::from(refused), "{label:?} in {enabled:?}: {complaints:?}");
    }
    let injected = injected(&pod_of("deployment"));
    assert_eq!(policy.complaints(&injected, &namespace(None)), [] as [&str; 0]);
}

#[test]
fn pods_that_the_injector_leaves_alone_pass_where_they_did_not_ask_themselves() {
    let policy = Policy::read("validating/pods");
    for (field, value) in [
        ("hostNetwork", json!(true)),
        ("os", json!({ "name": "windows" })),
        ("nodeSelector", json!({ "kubernetes.io/os": "windows" })),
    ] {
        for (label, refused) in [(None, 0), (Some("true"), 1)] {
            let mut pod = pod(label);
            pod["spec"][field] = value.clone();
            assert_eq!(
                policy.complaints(&pod, &namespace(Some("enabled"))).len(),
                refused,
                "{field} {label:?}"
            );
        }
    }
}

#[test]
fn misspelt_labels_are_refused() {
    let pods = Policy::read("validating/pods");
    assert_eq!(pods.complaints(&pod(Some("yes")), &namespace(None)).len(), 1);
    let mut typo = pod(None);
    typo["metadata"]["labels"]["keystile.dev/injekt"] = json!("true");
    assert_eq!(pods.complaints(&typo, &namespace(None)).len(), 1);

    let namespaces = Policy::read("validating/namespaces");
    for (labels, refused) in [
        (json!({}), 0),
        (json!({ "team": "shop" }), 0),
        (json!({ "keystile.dev/injection": "enabled" }), 0),
        (json!({ "keystile.dev/injection": "disabled" }), 0),
        (json!({ "keystile.dev/injection": "true" }), 1),
        (json!({ "keystile.dev/inject": "true" }), 1),
    ] {
        let object = json!({ "metadata": { "name": "shop", "labels": labels } });
        assert_eq!(namespaces.complaints(&object, &Value::Null).len(), refused, "{labels}");
    }
    let bare = json!({ "metadata": { "name": "shop" } });
    assert_eq!(namespaces.complaints(&bare, &Value::Null).len(), 0);
}

#[test]
fn mutating_policy_makes_of_a_pod_what_the_injector_makes() {
    let policy = Policy::read("mutating/policy");
    let mut bare = pod(Some("true"));
    bare["spec"]["volumes"].take();
    bare["spec"]["containers"][1]["volumeMounts"].take();
    let bare: Value = without_nulls(bare);
    let mut named = pod(Some("true"));
    named["metadata"]["annotations"] = json!({
        "keystile.dev/config": "other",
        "keystile.dev/keys-secret": "others",
        "keystile.dev/envoy-container": "shop",
        "keystile.dev/log-level": "debug",
        "keystile.dev/memory-request": "80Mi",
        "keystile.dev/memory-limit": "90Mi",
    });
    for pod in [pod_of("deployment"), pod_of("job"), bare, named] {
        assert!(policy.applies(&pod, &namespace(None)));
        let mutated = policy.mutated(&pod, &namespace(None));
        let mut expected = injected(&pod);
        // The policy leaves annotations alone.
        expected["metadata"] = pod["metadata"].clone();
        assert_eq!(mutated, expected);
        assert_eq!(policy.mutated(&mutated, &namespace(None)), mutated, "a second pass adds nothing");
    }
}

fn without_nulls(object: Value) -> Value {
    match object {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(_, value)| !value.is_null());
            kept.map(|(name, value)| (name, without_nulls(value))).collect()
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

#[test]
fn annotations_that_the_mutating_policy_passes_over_are_refused() {
    let policy = Policy::read("mutating/annotations");
    for (annotation, refused) in [
        ("keystile.dev/config", 0),
        ("other.dev/note", 0),
        ("keystile.dev/cpu-limit", 1),
        ("keystile.dev/konfig", 1),
    ] {
        let mut pod = pod(None);
        pod["metadata"]["annotations"] = json!({ annotation: "x" });
        assert_eq!(policy.complaints(&pod, &namespace(None)).len(), refused, "{annotation}");
    }
}

#[test]
fn mutating_policy_is_for_those_that_ask() {
    let policy = Policy::read("mutating/policy");
    for (label, enabled, applies) in [
        (Some("true"), None, true),
        (None, Some("enabled"), true),
        (Some("false"), Some("enabled"), false),
        (None, None, false),
    ] {
        assert_eq!(policy.applies(&pod(label), &namespace(enabled)), applies, "{label:?} in {enabled:?}");
    }
    let mut host = pod(Some("true"));
    host["spec"]["hostNetwork"] = json!(true);
    assert!(!policy.applies(&host, &namespace(None)));
}
