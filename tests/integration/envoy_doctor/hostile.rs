//! Documents that are malformed, huge, or made to harm.

use keystile::envoy_config::{DocumentError, MAX_BYTES, examine};
use proptest::prelude::*;

use super::examined;
use crate::harness::tools::read;

fn error(text: &str) -> String {
    examine(text, None).expect_err("no configuration").to_string()
}

#[test]
fn errors_name_a_place_and_no_content() {
    for (text, words) in [
        ("", "empty"),
        ("apiVersion: networking.istio.io/v1\nkind: EnvoyFilter", "no static_resources"),
        ("{\"static_resources\": [hunter2}", "line 1"),
        ("static_resources:\n  listeners: [hunter2", "line 2"),
        (r#"{"configs": [{"@type": "x/envoy.admin.v3.ClustersConfigDump"}]}"#, "filtered dump"),
    ] {
        let said = error(text);
        assert!(said.contains(words), "{words} in {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn long_deep_and_expanding_documents_are_refused() {
    assert_eq!(examine(&" ".repeat(MAX_BYTES + 1), None).unwrap_err(), DocumentError::TooLong);
    let deep = format!(r#"{{"static_resources": {}{}}}"#, "[".repeat(1 << 20), "]".repeat(1 << 20));
    assert!(error(&deep).contains("nested"));
    let mut bomb = "a0: &a0 {name: x}\n".to_owned();
    for level in 1..30 {
        bomb += &format!("a{level}: &a{level} [*a{0}, *a{0}, *a{0}, *a{0}]\n", level - 1);
    }
    assert!(error(&format!("{bomb}static_resources: *a29\n")).contains("expanded"));
}

#[test]
fn many_routes_are_examined_and_few_are_named() {
    let route = "              - {name: r, match: {path: /x}, direct_response: {status: 200}, typed_per_filter_config: {envoy.filters.http.ext_authz: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute, disabled: true}}}\n";
    let text = read("envoy/uds.yaml")
        .replace("              routes:\n", &format!("              routes:\n{}", route.repeat(5_000)));
    let examined = examined(&text);
    let [finding] = &examined.findings[..] else { panic!("{} findings", examined.findings.len()) };
    assert!(finding.message.ends_with("and 4996 more"), "{}", finding.message);
}

#[test]
fn fields_of_wrong_types_do_no_harm() {
    for value in ["null", "[]", "{}", "7", "\"x\"", "[[[]]]", "{\"a\": null}"] {
        for field in [
            "filter_chains",
            "http_filters",
            "route_config",
            "routes",
            "grpc_service",
            "clusters",
            "timeout",
            "mutations",
        ] {
            let text = read("envoy/uds.yaml");
            let json: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
            let json = replaced(json, field, &serde_json::from_str(value).unwrap());
            // Anything but a panic.
            let _ = examine(&json.to_string(), None);
        }
    }
}

/// The value with each field of this name replaced.
fn replaced(value: serde_json::Value, field: &str, by: &serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(object) => {
            let entries = object.into_iter().map(|(name, value)| {
                let value = if name == field { by.clone() } else { replaced(value, field, by) };
                (name, value)
            });
            Value::Object(entries.collect())
        }
        Value::Array(list) => {
            Value::Array(list.into_iter().map(|value| replaced(value, field, by)).collect())
        }
        other => other,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_configurations_are_examined_or_refused(at in 0_usize..16_000, text in "[a-z{}\\[\\]:,'\"&*\n -]{0,12}") {
        let mut damaged: Vec<char> = read("envoy/uds.yaml").chars().collect();
        let at = at.min(damaged.len());
        damaged.splice(at..at, text.chars());
        let _ = examine(&damaged.into_iter().collect::<String>(), None);
    }
}
