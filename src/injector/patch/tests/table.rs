//! Each rule, by a pod.

use super::*;
use crate::config::SidecarUser;

#[test]
fn pod_gets_socket_sidecar_mount_and_annotations() {
    let Injection { patch, warnings } = injection(&pod());
    let secret = |name: &str, key: &str, optional: bool| {
        json!({ "name": name, "valueFrom": {
            "secretKeyRef": { "name": "keystile", "key": key, "optional": optional }
        } })
    };
    let container = json!({
        "name": "keystile",
        "image": "keystile:1",
        "imagePullPolicy": "IfNotPresent",
        "restartPolicy": "Always",
        "args": ["serve"],
        "envFrom": [{ "configMapRef": { "name": "keystile", "optional": true } }],
        "env": [
            { "name": "KEYSTILE_LISTEN", "value": "unix:/run/keystile/keystile.sock" },
            { "name": "KEYSTILE_SOCKET_MODE", "value": "0666" },
            { "name": "KEYSTILE_ADMIN_LISTEN", "value": "[::]:9192" },
            secret("KEYSTILE_DATABASE_URL", "database-url", false),
            secret("KEYSTILE_CHANGE_FEED_URL", "change-feed-url", true),
            secret("KEYSTILE_REDIS_URL", "redis-url", true),
            secret("KEYSTILE_CACHE_SECRET", "cache-secret", true),
        ],
        "ports": [{ "name": "keystile-admin", "containerPort": 9192, "protocol": "TCP" }],
        "startupProbe": {
            "exec": { "command": ["/usr/local/bin/keystile", "probe", "--alive"] },
            "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 60,
        },
        "readinessProbe": {
            "exec": { "command": ["/usr/local/bin/keystile", "probe"] },
            "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 2,
        },
        "resources": {
            "requests": { "cpu": "50m", "memory": "64Mi" },
            "limits": { "memory": "256Mi" },
        },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            { "name": "keystile-run", "mountPath": "/run/keystile" },
            { "name": "keystile-config", "mountPath": "/etc/keystile", "readOnly": true },
            {
                "name": "keystile-no-token",
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                "readOnly": true,
            },
        ],
    });
    let status = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "container": "keystile",
        "volumes": ["keystile-run", "keystile-config", "keystile-no-token"],
    });
    let add = |path: &str, value: Value| json!({ "op": "add", "path": path, "value": value });
    let expected = [
        add(
            "/spec/volumes/1",
            json!({ "name": "keystile-run", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } }),
        ),
        add(
            "/spec/volumes/2",
            json!({ "name": "keystile-config", "projected": { "sources": [
                { "configMap": { "name": "keystile", "optional": true } },
                { "secret": { "name": "keystile" } },
            ] } }),
        ),
        add("/spec/volumes/3", json!({ "name": "keystile-no-token", "emptyDir": {} })),
        add(
            "/spec/containers/1/volumeMounts/1",
            json!({ "name": "keystile-run", "mountPath": "/run/keystile", "readOnly": true }),
        ),
        add("/spec/initContainers", json!([container])),
        add(
            "/metadata/annotations",
            json!({
                "prometheus.io/scrape": "true",
                "prometheus.io/port": "9192",
                "prometheus.io/path": "/metrics",
                "keystile.dev/status": status.to_string(),
            }),
        ),
    ];
    assert_eq!(json!(patch), json!(expected));
    assert_eq!(warnings, [] as [String; 0]);
}

#[test]
fn pod_that_is_not_meant_stays_as_it_is() {
    let declined = pod_with("/metadata/labels/keystile.dev~1inject", json!("false"));
    assert_eq!(injection(&declined), Injection::default());
    let unlabelled = review(&pod(), Scope::LabelledPods, &sidecar());
    assert_eq!(unlabelled, Ok(Injection::default()));
}

#[test]
fn sidecar_is_first_of_the_init_containers() {
    let injected = injected(&pod_with("/spec/initContainers", json!([{ "name": "istio-init" }])));
    let names: Vec<_> = injected["spec"]["initContainers"].as_array().expect("there").iter().collect();
    assert_eq!(names[0]["name"], "keystile");
    assert_eq!(names[1], &json!({ "name": "istio-init" }));
}

#[test]
fn native_envoy_gets_its_mount() {
    let istio = json!([{ "name": "istio-init" }, { "name": "istio-proxy", "restartPolicy": "Always" }]);
    let mut pod = pod_with("/spec/initContainers", istio);
    pod["spec"]["containers"] = json!([{ "name": "app" }]);
    let injected = injected(&pod);
    let proxy = &injected["spec"]["initContainers"][2];
    assert_eq!(proxy["name"], "istio-proxy");
    assert_eq!(proxy["volumeMounts"][0]["mountPath"], "/run/keystile");
    assert_eq!(proxy["volumeMounts"][0]["readOnly"], true);
}

#[test]
fn envoy_that_came_later_gets_its_mount_and_nothing_else_changes() {
    let mut alone = pod();
    alone["spec"]["containers"] = json!([{ "name": "app" }]);
    let first = injection(&alone);
    assert!(first.warnings[0].contains("envoy or istio-proxy"), "{:?}", first.warnings);
    let mut pod = patched(&alone, &first.patch);
    set(&mut pod, "/spec/containers/-", json!({ "name": "istio-proxy" }));
    let Injection { patch, warnings } = injection(&pod);
    assert_eq!(
        json!(patch),
        json!([{
            "op": "add",
            "path": "/spec/containers/1/volumeMounts",
            "value": [{ "name": "keystile-run", "mountPath": "/run/keystile", "readOnly": true }],
        }])
    );
    assert!(warnings.is_empty());
}

#[test]
fn annotations_say_what_is_different() {
    let mut pod = pod();
    for (name, value) in [
        ("config", "shop"),
        ("keys-secret", "shop-keys"),
        ("envoy-container", "app"),
        ("log-level", "debug"),
        ("cpu-request", "10m"),
        ("cpu-limit", "2"),
        ("memory-request", "300Mi"),
    ] {
        set(&mut pod, &format!("/metadata/annotations/keystile.dev~1{name}"), json!(value));
    }
    let injected = injected(&pod);
    let sidecar = container(&injected);
    assert_eq!(sidecar["envFrom"], json!([{ "configMapRef": { "name": "shop", "optional": false } }]));
    for secret in 3..7 {
        assert_eq!(sidecar["env"][secret]["valueFrom"]["secretKeyRef"]["name"], "shop-keys");
    }
    assert_eq!(sidecar["env"][7], json!({ "name": "KEYSTILE_LOG", "value": "debug" }));
    assert_eq!(
        sidecar["resources"],
        json!({ "requests": { "cpu": "10m", "memory": "300Mi" }, "limits": { "cpu": "2", "memory": "300Mi" } }),
        "a limit below what is asked for gives way",
    );
    let sources = &injected["spec"]["volumes"][2]["projected"]["sources"];
    assert_eq!(sources[0]["configMap"], json!({ "name": "shop", "optional": false }));
    assert_eq!(sources[1]["secret"]["name"], "shop-keys");
    assert_eq!(injected["spec"]["containers"][0]["volumeMounts"][0]["name"], "keystile-run");
    assert_eq!(
        injected["spec"]["containers"][1], pod["spec"]["containers"][1],
        "not the Envoy that was named"
    );
}

#[test]
fn request_above_its_limit_is_refused() {
    let mut pod = pod_with("/metadata/annotations/keystile.dev~1memory-request", json!("1Gi"));
    set(&mut pod, "/metadata/annotations/keystile.dev~1memory-limit", json!("512Mi"));
    assert!(refusal(&pod).contains("keystile.dev/memory-request is above"));
}

#[test]
fn guaranteed_pod_stays_guaranteed() {
    let exact =
        json!({ "limits": { "cpu": 1, "memory": "1Gi" }, "requests": { "cpu": "1000m", "memory": "1Gi" } });
    let mut pod = pod();
    for index in 0..2 {
        set(&mut pod, &format!("/spec/containers/{index}/resources"), exact.clone());
    }
    let same = json!({ "cpu": "500m", "memory": "256Mi" });
    assert_eq!(container(&injected(&pod))["resources"], json!({ "requests": same, "limits": same }));
    set(&mut pod, "/metadata/annotations/keystile.dev~1cpu-request", json!("2"));
    let resources = container(&injected(&pod))["resources"].clone();
    assert_eq!(resources["requests"]["cpu"], resources["limits"]["cpu"]);
    pod["spec"]["containers"][1]["resources"]["requests"]["cpu"] = json!("900m");
    assert_eq!(container(&injected(&pod))["resources"]["limits"], json!({ "memory": "256Mi" }));
}

#[test]
fn pod_with_resources_as_a_whole_gets_none() {
    let mut pod = pod_with("/spec/resources", json!({ "limits": { "cpu": "2", "memory": "1Gi" } }));
    assert_eq!(container(&injected(&pod)).get("resources"), None);
    set(&mut pod, "/metadata/annotations/keystile.dev~1memory-limit", json!("128Mi"));
    assert_eq!(container(&injected(&pod))["resources"], json!({ "limits": { "memory": "128Mi" } }));
}

#[test]
fn scraping_that_is_set_up_is_left_alone() {
    let pod = pod_with("/metadata/annotations/prometheus.io~1port", json!("8080"));
    let annotations = injected(&pod)["metadata"]["annotations"].clone();
    assert_eq!(annotations["prometheus.io/port"], "8080");
    assert_eq!(annotations.get("prometheus.io/scrape"), None);
    assert!(annotations["keystile.dev/status"].is_string());
}

#[test]
fn where_a_sidecar_does_no_good_there_is_a_warning() {
    for (pointer, value) in [
        ("/spec/hostNetwork", json!(true)),
        ("/spec/os/name", json!("windows")),
        ("/spec/nodeSelector/kubernetes.io~1os", json!("windows")),
        ("/metadata/annotations/kubernetes.io~1config.mirror", json!("5d1b")),
    ] {
        let Injection { patch, warnings } = injection(&pod_with(pointer, value));
        assert_eq!((patch.len(), warnings.len()), (0, 1), "{pointer}");
        assert!(warnings[0].contains("not injected"), "{warnings:?}");
        assert!(warnings[0].len() < 256, "the API server cuts longer ones");
    }
}

#[test]
fn taken_names_are_refused() {
    for (pointer, value, named) in [
        ("/spec/containers/-", json!({ "name": "keystile", "image": "other" }), "keystile"),
        ("/spec/initContainers", json!([{ "name": "keystile" }]), "keystile"),
        (
            "/spec/volumes/-",
            json!({ "name": "keystile-run", "hostPath": { "path": "/run" } }),
            "keystile-run",
        ),
        ("/spec/volumes/-", json!({ "name": "keystile-config", "emptyDir": {} }), "keystile-config"),
        ("/spec/containers/0/ports", json!([{ "containerPort": 9192 }]), "9192"),
        (
            "/spec/containers/1/volumeMounts",
            json!([{ "name": "config", "mountPath": "/run/keystile/" }]),
            "/run/keystile",
        ),
    ] {
        let message = refusal(&pod_with(pointer, value));
        assert!(message.contains(named), "{message}");
    }
    assert!(refusal(&json!({ "metadata": {} })).contains("spec"));
}

#[test]
fn port_of_another_kind_is_not_taken() {
    let native_is_off = "/metadata/annotations/keystile.dev~1native-sidecar";
    let port = |protocol: &str| json!([{ "containerPort": 9192, "protocol": protocol }]);
    for (pointer, value) in [
        ("/spec/containers/0/ports", port("UDP")),
        ("/spec/containers/0/ports", port("SCTP")),
        // The node's port, and a name that is unique in its container only.
        ("/spec/containers/0/ports", json!([{ "containerPort": 8080, "hostPort": 9192 }])),
        ("/spec/containers/0/ports", json!([{ "containerPort": 8080, "name": "keystile-admin" }])),
        (
            "/spec/initContainers",
            json!([{ "name": "sync", "restartPolicy": "Always", "ports": port("UDP") }]),
        ),
    ] {
        let injected = injected(&pod_with(pointer, value.clone()));
        assert_eq!(container(&injected)["ports"][0]["containerPort"], 9192, "{value}");
    }
    let both =
        json!([{ "containerPort": 9192, "protocol": "UDP" }, { "containerPort": 9192, "protocol": "TCP" }]);
    for (pointer, value) in [
        ("/spec/containers/0/ports", both),
        ("/spec/containers/0/ports", port("TCP")),
        ("/spec/containers/0/ports", port("")),
        // It runs while the sidecar does.
        ("/spec/initContainers", json!([{ "name": "sync", "ports": port("TCP") }])),
    ] {
        assert!(refusal(&pod_with(pointer, value.clone())).contains("TCP port 9192"), "{value}");
    }
    // A plain sidecar starts when this one has ended, and not before that one, which does not end.
    let ends = json!([{ "name": "sync", "ports": port("TCP") }]);
    let mut pod = pod_with("/spec/initContainers", ends);
    set(&mut pod, native_is_off, json!("false"));
    container(&injected(&pod));
    pod["spec"]["initContainers"][0]["restartPolicy"] = json!("Always");
    assert!(refusal(&pod).contains("TCP port 9192"));
}

#[test]
fn cluster_may_choose_the_user() {
    let mut sidecar = sidecar();
    sidecar.user = SidecarUser(None);
    let Injection { patch, .. } = review(&pod(), Scope::EnabledNamespace, &sidecar).expect("not refused");
    let injected = patched(&pod(), &patch);
    let context = &container(&injected)["securityContext"];
    assert_eq!((context.get("runAsUser"), context.get("runAsGroup")), (None, None));
    assert_eq!(context["runAsNonRoot"], true);
}

#[test]
fn job_ends_with_its_work() {
    let job = pod_with("/spec/restartPolicy", json!("Never"));
    assert_eq!(
        container(&injected(&job))["restartPolicy"],
        "Always",
        "native: the kubelet stops it at the end"
    );
}

#[test]
fn plain_container_only_where_the_pod_does_not_end() {
    let mut pod = pod_with("/metadata/annotations/keystile.dev~1native-sidecar", json!("false"));
    for policy in [Value::Null, json!("Always")] {
        pod["spec"]["restartPolicy"] = policy;
        let injected = injected(&pod);
        assert_eq!(injected["spec"]["containers"][2]["name"], "keystile");
        assert_eq!(injected["spec"]["containers"][2].get("restartPolicy"), None);
        assert_eq!(injected["spec"].get("initContainers"), None);
    }
    for policy in ["Never", "OnFailure"] {
        pod["spec"]["restartPolicy"] = json!(policy);
        assert!(refusal(&pod).contains(policy));
    }
}
