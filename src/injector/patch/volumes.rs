//! The sidecar's volumes, and where they are mounted.

use json_patch::jsonptr::Pointer;
use serde_json::{Value, json};

use super::additions::{Additions, Place};
use crate::injector::{annotations::PodOptions, pod::list, sidecar::Sidecar};

/// Holds the Unix socket that Envoy connects to.
const SOCKET: &str = "keystile-run";
/// Holds settings and secrets as files.
const CONFIG: &str = "keystile-config";
/// Empty. It is mounted where the API server would mount a token.
const NO_TOKEN: &str = "keystile-no-token";

/// Every volume.
pub(super) const NAMES: [&str; 3] = [SOCKET, CONFIG, NO_TOKEN];

/// Where the socket's volume is mounted, in both containers.
pub(super) const SOCKET_FOLDER: &str = "/run/keystile";
const CONFIG_FOLDER: &str = "/etc/keystile";
const TOKEN_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Adds the volumes that the pod lacks.
pub(super) fn add(additions: &mut Additions<'_>, options: &PodOptions, sidecar: &Sidecar) {
    let present = list(&additions.pod()["spec"], "volumes");
    let is_missing = |volume: &Value| present.iter().all(|other| other["name"] != volume["name"]);
    let missing: Vec<_> = volumes(options, sidecar).into_iter().filter(is_missing).collect();
    if !missing.is_empty() {
        additions.insert(Pointer::from_static("/spec/volumes"), Place::Last, missing);
    }
}

fn volumes(options: &PodOptions, sidecar: &Sidecar) -> [Value; 3] {
    let config = options.config.as_ref().unwrap_or(&sidecar.config);
    let secret = options.keys_secret.as_ref().unwrap_or(&sidecar.keys_secret);
    // In memory: no wait for a disk. The socket itself takes no space.
    let socket = json!({ "name": SOCKET, "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } });
    let config = json!({ "name": CONFIG, "projected": { "sources": [
        { "configMap": { "name": config, "optional": options.config.is_none() } },
        { "secret": { "name": secret } },
    ] } });
    [socket, config, json!({ "name": NO_TOKEN, "emptyDir": {} })]
}

/// The kind of the sidecar's volume with this name.
pub(super) fn kind(name: &str) -> Option<&'static str> {
    match name {
        SOCKET | NO_TOKEN => Some("emptyDir"),
        CONFIG => Some("projected"),
        _ => None,
    }
}

/// The sidecar's mounts.
pub(super) fn mounts() -> Value {
    json!([
        { "name": SOCKET, "mountPath": SOCKET_FOLDER },
        { "name": CONFIG, "mountPath": CONFIG_FOLDER, "readOnly": true },
        // The API server mounts no token where a pod has a mount.
        { "name": NO_TOKEN, "mountPath": TOKEN_FOLDER, "readOnly": true },
    ])
}

/// Envoy's mount. To connect, Envoy need not write to the folder.
pub(super) fn envoy_mount() -> Value {
    json!({ "name": SOCKET, "mountPath": SOCKET_FOLDER, "readOnly": true })
}

/// Whether a container mounts the socket's volume at its folder.
pub(super) fn mounts_socket(container: &Value) -> bool {
    socket_folder_mount(container).is_some_and(|mount| mount["name"] == SOCKET)
}

/// The mount that a container has at the socket's folder.
pub(super) fn socket_folder_mount(container: &Value) -> Option<&Value> {
    let at_folder = |mount: &&Value| {
        mount["mountPath"].as_str().is_some_and(|path| path.trim_end_matches('/') == SOCKET_FOLDER)
    };
    list(container, "volumeMounts").iter().find(at_folder)
}
