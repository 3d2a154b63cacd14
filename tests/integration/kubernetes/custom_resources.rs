//! Resources of other projects' kinds, with their schemas.
//!
//! `tests/crds/schemas.json` has the parts that `k8s/` uses. `tests/crds/trim.py` writes it, from checkouts of the projects.

use std::collections::BTreeSet;

use serde_json::Value;

use super::manifests::EXAMPLES;
use crate::harness::tools::{Verdict, kustomize, python, read, yaml};

fn validate(manifest: &str) -> Verdict {
    python(&["tests/crds/validate.py"], manifest)
}

fn example(name: &str) -> String {
    read(&format!("k8s/examples/{name}.yaml"))
}

#[test]
fn custom_resources_match_the_schemas_of_their_projects() {
    let mut validated = 0;
    let mut not_evaluated = BTreeSet::new();
    for name in EXAMPLES.iter().chain(&["istio-mesh"]) {
        let text = validate(&example(name)).good();
        validated += text.lines().filter(|line| line.ends_with(": valid")).count();
        let rules = text.lines().filter_map(|line| line.split_once(": not evaluated: "));
        not_evaluated.extend(rules.map(|(_, rule)| rule.to_owned()));
    }
    // Of more than a hundred, those with functions of Kubernetes alone.
    assert!(not_evaluated.len() <= 3, "{not_evaluated:?}");
    assert!(validated >= 25, "{validated}");
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "no kubectl")]
fn custom_resources_of_overlays_match_their_schemas() {
    for (overlay, kinds) in
        [("cert-manager", &["Issuer", "Certificate"][..]), ("monitoring", &["PodMonitor", "PrometheusRule"])]
    {
        let text = validate(&kustomize(overlay)).good();
        for kind in kinds {
            assert!(text.contains(&format!("/{kind}: valid")), "{overlay}: {text}");
        }
    }
}

/// A check that accepts everything would pass the tests above.
#[test]
fn mistakes_in_custom_resources_are_noticed() {
    for (name, from, to, complaint) in [
        ("envoy-gateway", "statusOnError: 503", "statusOnErorr: 503", "'statusOnErorr' was unexpected"),
        ("envoy-gateway", "statusOnError: 503", "statusOnError: 200", "200 is not one of"),
        ("envoy-gateway", "removeOnMatch:", "removeMatching:", "'removeMatching' was unexpected"),
        ("envoy-gateway-shared", "port: 9191", "port: grpc", "is not of type 'integer'"),
        (
            "envoy-gateway-shared",
            "kind: SecurityPolicy\n      namespace",
            "namespace",
            "'kind' is a required",
        ),
        ("istio", "action: CUSTOM", "action: EXTERNAL", "'EXTERNAL' is not one of"),
        ("istio", "notPorts:", "notPort:", "'notPort' was unexpected"),
        ("istio", "notPorts:\n              - \"9192\"", "notPorts: [9192]", "9192 is not of type 'string'"),
        ("istio", "context: SIDECAR_INBOUND", "context: INBOUND", "'INBOUND' is not one of"),
        (
            "istio-ingress",
            "    labels:\n      keystile",
            "    label:\n      keystile",
            "'label' was unexpected",
        ),
        ("istio-ambient", "targetRefs:", "targetReferences:", "'targetReferences' was unexpected"),
        ("istio-mesh", "statusOnError: \"503\"", "statusOnError: 503", "503 is not of type 'string'"),
        ("istio-mesh", "timeout: 2s", "timout: 2s", "'timout' was unexpected"),
        ("istio-jwt", "kind: RequestAuthentication", "kind: RequestAuthenticatian", "no schema"),
        // CEL rules.
        (
            "istio-ambient",
            "  targetRefs:",
            "  selector:\n    matchLabels:\n      app: shop\n  targetRefs:",
            "only one of targetRefs or selector can be set",
        ),
        (
            "envoy-gateway",
            "      kind: Gateway\n",
            "      kind: Service\n",
            "this policy can only have a targetRef",
        ),
        ("envoy-gateway", "kind: Backend\nmetadata", "kind: Backends\nmetadata", "no schema"),
    ] {
        let manifest = example(name);
        assert!(manifest.contains(from), "{name}: {from}");
        let verdict = validate(&manifest.replace(from, to));
        assert!(!verdict.good && verdict.text.contains(complaint), "{name}, {to}: {}", verdict.text);
    }
}

/// The objects of these examples, and of the mesh configuration.
fn objects(names: &[&str]) -> Vec<Value> {
    names.iter().flat_map(|name| yaml(&example(name))).collect()
}

#[test]
fn istios_policies_name_providers_and_providers_name_services_that_exist() {
    let mesh = objects(&["istio-mesh"]).remove(0);
    let providers = mesh["meshConfig"]["extensionProviders"].as_array().unwrap();
    let service = |provider: &Value| {
        let grpc = &providers.iter().find(|listed| listed["name"] == *provider).unwrap()["envoyExtAuthzGrpc"];
        assert_eq!((&grpc["failOpen"], &grpc["statusOnError"]), (&false.into(), &"503".into()), "{provider}");
        (grpc["service"].as_str().unwrap(), grpc["port"].clone())
    };
    let mut used = 0;
    for (name, with) in [("istio-ingress", &[][..]), ("istio", &[]), ("istio-ambient", &["shared-service"])] {
        let objects = objects(&[&[name], with].concat());
        let of_kind = |kind| objects.iter().filter(move |object| object["kind"] == kind);
        for policy in of_kind("AuthorizationPolicy").filter(|policy| policy["spec"]["action"] == "CUSTOM") {
            let (host, port) = service(&policy["spec"]["provider"]["name"]);
            let mut hosts = of_kind("ServiceEntry")
                .map(|entry| (entry["spec"]["hosts"][0].clone(), &entry["spec"]["ports"][0]["number"]))
                .chain(of_kind("Service").map(|service| {
                    let metadata = &service["metadata"];
                    let (name, namespace) = (metadata["name"].as_str().unwrap(), &metadata["namespace"]);
                    let host = format!("{name}.{}.svc.cluster.local", namespace.as_str().unwrap());
                    // Istio sends a headless Service's requests to the address that the caller chose.
                    let host = if service["spec"]["clusterIP"] == "None" { String::new() } else { host };
                    (host.into(), &service["spec"]["ports"][0]["port"])
                }));
            assert!(hosts.any(|(listed, number)| listed == host && *number == port), "{name}: {host}");
            used += 1;
        }
    }
    assert_eq!(used, 3);
}

/// Each example that puts Envoy before Keystile denies with 503 when Keystile is dead.
#[test]
fn every_security_policy_fails_closed_with_503() {
    let names: Vec<_> = EXAMPLES.iter().copied().filter(|name| name.starts_with("envoy-gateway")).collect();
    let policies: Vec<_> =
        objects(&names).into_iter().filter(|object| object["kind"] == "SecurityPolicy").collect();
    assert_eq!(policies.len(), 3);
    for policy in policies {
        let check = &policy["spec"]["extAuth"];
        assert_eq!((&check["failOpen"], &check["statusOnError"]), (&false.into(), &503.into()), "{policy}");
    }
}

#[test]
fn policy_that_names_another_namespace_has_its_grant() {
    let objects = objects(&["envoy-gateway-shared", "shared-service"]);
    let find = |kind| objects.iter().find(|object| object["kind"] == kind).unwrap();
    let (policy, grant) = (find("SecurityPolicy"), &find("ReferenceGrant"));
    let backend = &policy["spec"]["extAuth"]["grpc"]["backendRefs"][0];
    let (from, to) = (&grant["spec"]["from"][0], &grant["spec"]["to"][0]);
    assert_eq!(from["kind"], policy["kind"]);
    assert!(policy["apiVersion"].as_str().unwrap().starts_with(from["group"].as_str().unwrap()));
    assert_eq!(from["namespace"], policy["metadata"]["namespace"]);
    assert_eq!(grant["metadata"]["namespace"], backend["namespace"]);
    assert_eq!((&to["kind"], &to["name"]), (&"Service".into(), &backend["name"]));
    let is_backend = |object: &&Value| {
        object["kind"] == "Service"
            && object["metadata"]["name"] == backend["name"]
            && object["metadata"]["namespace"] == backend["namespace"]
    };
    assert!(objects.iter().any(|object| is_backend(&object)), "{backend}");
}
