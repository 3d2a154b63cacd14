//! The sidecar's container.

use serde_json::{Value, json};

use super::{
    Refused, Sidecar,
    additions::{Additions, Place},
    containers, resources, volumes,
};
use crate::injector::asked::Asked;

/// Its name.
pub(super) const NAME: &str = "keystile";
/// Where the image has the binary.
const BINARY: &str = "/usr/local/bin/keystile";
/// The image's user and group.
const USER: u32 = 65532;

/// Adds it, unless it is there.
///
/// # Errors
/// When it would keep the pod from ending, or its resources contradict each other.
pub(super) fn add(additions: &mut Additions<'_>, asked: &Asked, sidecar: &Sidecar) -> Result<(), Refused> {
    let pod = additions.pod();
    if containers(pod).any(|(_, _, container)| container["name"] == NAME) {
        return Ok(());
    }
    let mut container = container(pod, asked, sidecar)?;
    if !asked.no_native_sidecar {
        // First, so that Envoy finds it running, and it outlives Envoy when the pod ends.
        container["restartPolicy"] = json!("Always");
        additions.insert("/spec/initContainers", Place::First, vec![container]);
        return Ok(());
    }
    if let Some(policy @ ("Never" | "OnFailure")) = pod["spec"]["restartPolicy"].as_str() {
        return Err(Refused(format!(
            "annotation keystile.dev/native-sidecar: \"false\" would keep a pod with restartPolicy {policy} from ending"
        )));
    }
    additions.insert("/spec/containers", Place::Last, vec![container]);
    Ok(())
}

fn container(pod: &Value, asked: &Asked, sidecar: &Sidecar) -> Result<Value, Refused> {
    let config = asked.config.as_ref().unwrap_or(&sidecar.config);
    let mut container = json!({
        "name": NAME,
        "image": sidecar.image,
        "imagePullPolicy": sidecar.image_pull_policy,
        "args": ["serve"],
        "envFrom": [{ "configMapRef": { "name": config, "optional": asked.config.is_none() } }],
        "env": environment(asked, sidecar),
        "ports": [{ "name": "keystile-admin", "containerPort": sidecar.admin_port, "protocol": "TCP" }],
        // Started is who answers at all: a service mesh that captures traffic before its own proxy
        // runs lets no database be reached until then.
        "startupProbe": probe(&["--alive"], 1, 60),
        "readinessProbe": probe(&[], 5, 2),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": volumes::mounts(),
    });
    if let Some(resources) = resources::of(pod, asked, sidecar)? {
        container["resources"] = resources;
    }
    Ok(container)
}

/// Settings that the ConfigMap does not change, and those that are secret.
fn environment(asked: &Asked, sidecar: &Sidecar) -> Value {
    let secret = asked.keys_secret.as_ref().unwrap_or(&sidecar.keys_secret);
    let from_secret = |name: &str, key: &str, optional: bool| {
        json!({ "name": name, "valueFrom": {
            "secretKeyRef": { "name": secret, "key": key, "optional": optional }
        } })
    };
    let mut environment = vec![
        json!({ "name": "KEYSTILE_LISTEN", "value": format!("unix:{}/keystile.sock", volumes::SOCKET_FOLDER) }),
        // Envoy runs as another user. Only containers that mount the folder get to see the socket.
        json!({ "name": "KEYSTILE_SOCKET_MODE", "value": "0666" }),
        json!({ "name": "KEYSTILE_ADMIN_LISTEN", "value": format!("0.0.0.0:{}", sidecar.admin_port) }),
        from_secret("KEYSTILE_DATABASE_URL", "database-url", false),
        from_secret("KEYSTILE_CHANGE_FEED_URL", "change-feed-url", true),
        from_secret("KEYSTILE_REDIS_URL", "redis-url", true),
        from_secret("KEYSTILE_CACHE_SECRET", "cache-secret", true),
    ];
    if let Some(level) = &asked.log_level {
        environment.push(json!({ "name": "KEYSTILE_LOG", "value": level }));
    }
    json!(environment)
}

/// Asks at the socket, which the kubelet itself could not reach.
fn probe(arguments: &[&str], period_seconds: u32, failure_threshold: u32) -> Value {
    let command = [&[BINARY, "probe"], arguments].concat();
    json!({
        "exec": { "command": command },
        "periodSeconds": period_seconds,
        "timeoutSeconds": 3,
        "failureThreshold": failure_threshold,
    })
}
