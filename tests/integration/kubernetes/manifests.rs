//! Manifests, rendered.
//!
//! After a change: `KEYSTILE_BLESS=1 cargo test --test integration kubernetes` renders them anew.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "kubectl can be had for x86_64 alone"))]

use serde_json::Value;

use super::injected::IMAGE;
use crate::harness::tools::{self, helm, kustomize, python, read, repository, yaml};

/// Overlays that the oldest supported Kubernetes takes, and those for newer ones alone.
const OVERLAYS: [&str; 4] = ["cert-manager", "openshift", "self-signed", "monitoring"];
const NEWER: [(&str, &str); 2] = [("policy/validating", "1.30"), ("policy", "1.37")];
pub(super) const EXAMPLES: [&str; 13] = [
    "settings",
    "admin",
    "deployment",
    "networkpolicy",
    "job",
    "istio-ingress",
    "istio",
    "istio-ambient",
    "istio-jwt",
    "envoy-gateway",
    "envoy-gateway-shared",
    "envoy-gateway-jwt",
    "shared-service",
];

/// Kinds that are not Kubernetes' own, and have no schema in the validator.
const FOREIGN: [&str; 16] = [
    "AuthorizationPolicy",
    "Backend",
    "Certificate",
    "ClientTrafficPolicy",
    "EnvoyFilter",
    "EnvoyProxy",
    "Gateway",
    "GatewayClass",
    "HTTPRoute",
    "Issuer",
    "PodMonitor",
    "PrometheusRule",
    "ReferenceGrant",
    "RequestAuthentication",
    "SecurityPolicy",
    "ServiceEntry",
];

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "no kubectl")]
fn manifests_are_valid_for_the_oldest_and_the_newest_kubernetes() {
    for version in ["1.29", "1.37"] {
        for overlay in OVERLAYS {
            validate(overlay, &kustomize(overlay), version);
        }
        for example in EXAMPLES {
            validate(example, &read(&format!("k8s/examples/{example}.yaml")), version);
        }
    }
    for (overlay, oldest) in NEWER {
        for version in [oldest, "1.37"] {
            validate(overlay, &kustomize(overlay), version);
        }
    }
}

/// Strictly: a field that the schema does not have fails, and so does a warning.
pub(super) fn validate(name: &str, manifest: &str, version: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("manifest.yaml");
    std::fs::write(&file, manifest).unwrap();
    let arguments = ["-m", "kubernetes_validate", "--strict", "-k", version, file.to_str().unwrap()];
    let verdict = python(&arguments, "");
    assert!(verdict.good, "{name} for {version}: {}", verdict.text);
    for line in verdict.text.lines().filter(|line| !line.starts_with("INFO")) {
        let foreign = FOREIGN.iter().any(|kind| line.contains(&format!("find schema for kind {kind} with")));
        assert!(foreign, "{name} for {version}: {line}");
    }
    assert!(!verdict.text.trim().is_empty(), "{name}: nothing was validated");
}

#[test]
fn yaml_is_tidy() {
    python(&["-m", "yamllint", "--strict", "-c", "k8s/.yamllint.yaml", "k8s"], "").good();
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "no kubectl")]
fn checkov_finds_nothing() {
    // It passes over hidden folders, as temporary ones are by default.
    let folder = || tempfile::Builder::new().prefix("checkov-").tempdir().unwrap();
    let (folder, seeded) = (folder(), folder());
    for overlay in OVERLAYS {
        std::fs::write(folder.path().join(format!("{overlay}.yaml")), kustomize(overlay)).unwrap();
    }
    for example in EXAMPLES {
        let manifest = read(&format!("k8s/examples/{example}.yaml"));
        std::fs::write(folder.path().join(format!("{example}.yaml")), manifest).unwrap();
    }
    // A hole, so that a checkov that looks at nothing is noticed.
    let hole = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: hole\nspec:\n  hostPID: true\n";
    std::fs::write(seeded.path().join("hole.yaml"), hole).unwrap();
    let checkov = |folder: &std::path::Path| {
        let folder = folder.to_str().unwrap();
        python(&["-m", "checkov.main", "--config-file", "k8s/.checkov.yaml", "--directory", folder], "")
    };
    assert!(checkov(seeded.path()).text.contains("CKV_K8S_17"), "hostPID is not noticed");
    checkov(folder.path()).good();
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "no kubectl")]
fn install_yaml_is_up_to_date() {
    let head = "# Rendered from k8s/cert-manager, which needs cert-manager; see docs/guides/kubernetes.md.\n";
    up_to_date("k8s/install.yaml", &(head.to_owned() + &kustomize("cert-manager")));
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "no kubectl and helm")]
fn chart_is_the_same_manifests() {
    let rendered = kustomize("cert-manager");
    up_to_date("k8s/chart/templates/injector.yaml", &template(&rendered));
    helm(&["lint", "--strict", "k8s/chart"]).good();

    let by_helm = helm(&[
        "template",
        "keystile",
        "k8s/chart",
        "--namespace",
        "keystile-system",
        "--kube-version",
        "1.37",
    ]);
    let mut expected = yaml(&rendered);
    expected.retain(|object| object["kind"] != "Namespace");
    assert_eq!(sorted(yaml(&by_helm.good())), sorted(expected));

    let changed = [
        "template",
        "keystile",
        "k8s/chart",
        "--namespace=auth",
        "--set=image=registry.example.com/keystile:2,replicas=3,settings.KEYSTILE_INJECT_CONFIG=shared",
        "--kube-version=1.29",
    ];
    let text = helm(&changed).good();
    let deployment = yaml(&text).into_iter().find(|object| object["kind"] == "Deployment").unwrap();
    assert_eq!(deployment["spec"]["replicas"], 3);
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "registry.example.com/keystile:2");
    let value = |name: &str| {
        let all = container["env"].as_array().unwrap();
        all.iter().find(|variable| variable["name"] == name).unwrap()["value"].clone()
    };
    assert_eq!(value("KEYSTILE_INJECT_IMAGE"), "registry.example.com/keystile:2");
    assert_eq!(value("KEYSTILE_INJECT_CONFIG"), "shared");
    assert!(!text.contains("keystile-system"), "a namespace is not the release's");
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "no helm")]
fn values_that_the_chart_does_not_have_are_refused() {
    let set = |value: &str| {
        helm(&["template", "keystile", "k8s/chart", "--kube-version=1.37", &format!("--set={value}")])
    };
    for (value, named) in [
        ("imagee=x", "imagee"),
        ("Image=x", "Image"),
        ("image=", "image"),
        ("image=a b", "image"),
        ("replicas=two", "replicas"),
        ("replicas=1.5", "replicas"),
        ("settings.KEYSTILE_INJECT_CONFIG.x=y", "KEYSTILE_INJECT_CONFIG"),
        ("settings.keystile_inject_config=y", "keystile_inject_config"),
        ("setting.KEYSTILE_INJECT_CONFIG=y", "setting"),
        ("user=0", "user"),
        ("user=root", "user"),
    ] {
        let refused = set(value);
        assert!(!refused.good && refused.text.contains(named), "{value}: {}", refused.text);
    }
    for value in
        ["image=r.example.com/k@sha256:0", "replicas=0", "settings.KEYSTILE_INJECT_CPU=1", "global.x=y"]
    {
        set(value).good();
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "no kubectl and helm")]
fn cluster_may_choose_the_user() {
    let by_helm = |user: &str| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("values.yaml");
        std::fs::write(&file, format!("user: {user}\n")).unwrap();
        let values = format!("--values={}", file.display());
        helm(&["template", "keystile", "k8s/chart", "--kube-version=1.37", &values]).good()
    };
    let user_of = |manifests: &str| {
        let all = yaml(manifests);
        let pod =
            &all.iter().find(|object| object["kind"] == "Deployment").unwrap()["spec"]["template"]["spec"];
        let variables = pod["containers"][0]["env"].as_array().unwrap();
        let sidecar = variables.iter().find(|variable| variable["name"] == "KEYSTILE_INJECT_USER").unwrap();
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        let ids = ["runAsUser", "runAsGroup"].map(|name| pod["securityContext"][name].as_u64());
        (ids, sidecar["value"].as_str().unwrap().to_owned())
    };
    for manifests in [by_helm("none"), kustomize("openshift")] {
        assert_eq!(user_of(&manifests), ([None, None], "none".to_owned()));
        assert!(!manifests.contains("runAsUser") && !manifests.contains("fsGroup"), "{manifests}");
    }
    let assigned = ([Some(1_000_680_000), Some(1_000_680_000)], "1000680000".to_owned());
    assert_eq!(user_of(&by_helm("1000680000")), assigned);
}

/// Each value has a schema with its comment as description, and each schema but Helm's own has a value.
#[test]
fn schema_of_the_chart_describes_its_values() {
    let text = read("k8s/chart/values.yaml");
    let schema: Value = serde_json::from_str(&read("k8s/chart/values.schema.json")).unwrap();
    let values = yaml(&text).remove(0);
    let described = values.as_object().unwrap().keys().map(|name| {
        let above = text.lines().take_while(|line| !line.starts_with(&format!("{name}:")));
        let comment = above.collect::<Vec<_>>().into_iter().rev().take_while(|line| line.starts_with('#'));
        let mut lines: Vec<_> = comment.map(|line| line.trim_start_matches("# ")).collect();
        lines.reverse();
        (name.clone(), lines.join(" "))
    });
    let described: Vec<_> = described.collect();
    let properties = schema["properties"].as_object().unwrap().iter();
    let properties = properties.filter(|(name, _)| *name != "global");
    let properties: Vec<_> = properties
        .map(|(name, property)| (name.clone(), property["description"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(properties, described);
    let required: Vec<_> =
        schema["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(required, properties.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
}

/// The chart's one template: the manifests, with values in a few places.
fn template(rendered: &str) -> String {
    // A number of a values file is a float, whose text has an exponent.
    const USER_VARIABLE: &str =
        "value: {{ ternary .Values.user (int64 .Values.user) (kindIs \"string\" .Values.user) | quote }}";
    const FIXED_USER: &str =
        "        runAsGroup: 65532\n        runAsNonRoot: true\n        runAsUser: 65532\n";
    const USER_OF_THE_INJECTOR: &str = "        {{- if not (kindIs \"string\" .Values.user) }}\n        \
        runAsGroup: {{ int64 .Values.user }}\n        runAsUser: {{ int64 .Values.user }}\n        \
        {{- end }}\n        runAsNonRoot: true\n";
    let documents = rendered.split("---\n").filter(|document| !document.contains("kind: Namespace\n"));
    let last_variable = "        - name: KEYSTILE_LOG_FORMAT\n          value: json\n";
    let settings = "        {{- range $name, $value := .Values.settings }}\n        - name: {{ $name }}\n          \
                    value: {{ $value | quote }}\n        {{- end }}\n";
    let head = "{{- /* Rendered from k8s/cert-manager by the tests: see tests/integration/kubernetes/manifests.rs. */ -}}\n";
    let body = documents.collect::<Vec<_>>().join("---\n");
    let replaced = body
        .replace("keystile-system", "{{ .Release.Namespace }}")
        .replace(&format!("image: {IMAGE}"), "image: {{ .Values.image }}")
        .replace(&format!("value: {IMAGE}"), "value: {{ .Values.image }}")
        .replace("value: \"65532\"", USER_VARIABLE)
        .replace(FIXED_USER, USER_OF_THE_INJECTOR)
        .replace("replicas: 2", "replicas: {{ .Values.replicas }}")
        .replace(last_variable, &(last_variable.to_owned() + settings));
    head.to_owned() + &replaced
}

fn sorted(mut objects: Vec<Value>) -> Vec<Value> {
    objects.sort_by_key(|object| (object["kind"].to_string(), object["metadata"]["name"].to_string()));
    objects
}

/// Compares a file with what it should be, or writes it.
pub(super) fn up_to_date(path: &str, expected: &str) {
    if std::env::var_os("KEYSTILE_BLESS").is_some() {
        std::fs::write(repository(path), expected).unwrap();
        return;
    }
    assert_eq!(tools::read(path), expected, "{path} is out of date: see this file's head");
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "no kubectl")]
fn no_pod_is_asked_about_twice() {
    let webhooks = yaml(&kustomize("base"));
    let webhooks = webhooks.iter().find(|object| object["kind"] == "MutatingWebhookConfiguration").unwrap();
    let webhooks = webhooks["webhooks"].as_array().unwrap();
    for namespace in [None, Some("enabled"), Some("disabled"), Some("on")] {
        for pod in [None, Some("true"), Some("false"), Some("yes")] {
            let matching: Vec<_> = webhooks
                .iter()
                .filter(|webhook| {
                    selects(&webhook["namespaceSelector"], "keystile.dev/injection", namespace)
                        && selects(&webhook["objectSelector"], "keystile.dev/inject", pod)
                })
                .map(|webhook| webhook["clientConfig"]["service"]["path"].as_str().unwrap())
                .collect();
            let expected: &[&str] = match (namespace, pod) {
                (Some("disabled"), _) | (Some("enabled"), Some("false")) => &[],
                (Some("enabled"), _) => &["/mutate/enabled-namespace"],
                (_, Some("true")) => &["/mutate"],
                _ => &[],
            };
            assert_eq!(matching, expected, "namespace {namespace:?}, pod {pod:?}");
        }
    }
    for webhook in webhooks {
        for own in ["kube-system", "keystile-system"] {
            assert!(
                !selects(&webhook["namespaceSelector"], "kubernetes.io/metadata.name", Some(own)),
                "{own}"
            );
        }
    }
}

/// Whether a selector takes an object, as far as this one label goes.
fn selects(selector: &Value, label: &str, value: Option<&str>) -> bool {
    let exact = selector["matchLabels"][label].as_str().is_none_or(|wanted| Some(wanted) == value);
    let expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    exact
        && expressions.filter(|expression| expression["key"] == label).all(|expression| {
            let listed =
                expression["values"].as_array().unwrap().iter().any(|listed| listed.as_str() == value);
            match expression["operator"].as_str().unwrap() {
                "In" => listed,
                "NotIn" => !listed,
                other => panic!("{other}"),
            }
        })
}
