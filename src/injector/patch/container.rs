//! The sidecar's container.

use json_patch::jsonptr::Pointer;
use serde_json::{Value, json};

use super::{
    additions::{Additions, Place},
    resources, volumes,
};
use crate::{
    config::SidecarUser,
    injector::{
        annotations::PodOptions,
        pod::{InvalidPod, containers},
        sidecar::Sidecar,
    },
};

/// Its name.
pub(super) const NAME: &str = "keystile";
/// Where the image has the binary.
const BINARY: &str = "/usr/local/bin/keystile";

/// Adds the container, unless the pod has it.
///
/// # Errors
/// [`InvalidPod`] when the container would keep the pod from ending, or its resources contradict each other.
pub(super) fn add(
    additions: &mut Additions<'_>,
    options: &PodOptions,
    sidecar: &Sidecar,
) -> Result<(), InvalidPod> {
    let pod = additions.pod();
    if containers(pod).any(|(_, _, container)| container["name"] == NAME) {
        return Ok(());
    }
    let mut container = container(pod, options, sidecar)?;
    if !options.no_native_sidecar {
        // First in the list: it starts before Envoy and stops after it.
        container["restartPolicy"] = json!("Always");
        additions.insert(Pointer::from_static("/spec/initContainers"), Place::First, vec![container]);
        return Ok(());
    }
    if let Some(policy @ ("Never" | "OnFailure")) = pod["spec"]["restartPolicy"].as_str() {
        return Err(InvalidPod(format!(
            "annotation keystile.dev/native-sidecar: \"false\" would keep a pod with restartPolicy {policy} from ending"
        )));
    }
    additions.insert(Pointer::from_static("/spec/containers"), Place::Last, vec![container]);
    Ok(())
}

fn container(pod: &Value, options: &PodOptions, sidecar: &Sidecar) -> Result<Value, InvalidPod> {
    let config = options.config.as_ref().unwrap_or(&sidecar.config);
    let mut container = json!({
        "name": NAME,
        "image": sidecar.image,
        "imagePullPolicy": sidecar.image_pull_policy,
        "args": ["serve"],
        "envFrom": [{ "configMapRef": { "name": config, "optional": options.config.is_none() } }],
        "env": environment(options, sidecar),
        "ports": [{ "name": "keystile-admin", "containerPort": sidecar.admin_port, "protocol": "TCP" }],
        // Any answer counts as started: a service mesh may block the database until its own proxy runs.
        "startupProbe": probe(&["--alive"], 1, 60),
        "readinessProbe": probe(&[], 5, 2),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": volumes::mounts(),
    });
    if let SidecarUser(Some(id)) = sidecar.user {
        container["securityContext"]["runAsUser"] = json!(id);
        container["securityContext"]["runAsGroup"] = json!(id);
    }
    if let Some(resources) = resources::of(pod, options, sidecar)? {
        container["resources"] = resources;
    }
    Ok(container)
}

/// The settings that the ConfigMap cannot change, and the secret ones.
fn environment(options: &PodOptions, sidecar: &Sidecar) -> Value {
    let secret = options.keys_secret.as_ref().unwrap_or(&sidecar.keys_secret);
    let from_secret = |name: &str, key: &str, optional: bool| {
        json!({ "name": name, "valueFrom": {
            "secretKeyRef": { "name": secret, "key": key, "optional": optional }
        } })
    };
    let mut environment = vec![
        json!({ "name": "KEYSTILE_LISTEN", "value": format!("unix:{}/keystile.sock", volumes::SOCKET_FOLDER) }),
        // Envoy runs as another user. Only containers that mount the folder see the socket.
        json!({ "name": "KEYSTILE_SOCKET_MODE", "value": "0666" }),
        json!({ "name": "KEYSTILE_ADMIN_LISTEN", "value": format!("[::]:{}", sidecar.admin_port) }),
        from_secret("KEYSTILE_DATABASE_URL", "database-url", false),
        from_secret("KEYSTILE_CHANGE_FEED_URL", "change-feed-url", true),
        from_secret("KEYSTILE_REDIS_URL", "redis-url", true),
        from_secret("KEYSTILE_CACHE_SECRET", "cache-secret", true),
    ];
    if let Some(level) = &options.log_level {
        environment.push(json!({ "name": "KEYSTILE_LOG", "value": level }));
    }
    json!(environment)
}

/// A probe by command: the kubelet cannot reach the socket itself.
fn probe(arguments: &[&str], period_seconds: u32, failure_threshold: u32) -> Value {
    let command = [&[BINARY, "probe"], arguments].concat();
    json!({
        "exec": { "command": command },
        "periodSeconds": period_seconds,
        "timeoutSeconds": 3,
        "failureThreshold": failure_threshold,
    })
}
