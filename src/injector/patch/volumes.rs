//! The sidecar's volumes, and where they are mounted.

use serde_json::{Value, json};

use super::{
    Sidecar,
    additions::{Additions, Place},
    list,
};
use crate::injector::asked::Asked;

/// Holds the Unix socket that Envoy asks at.
const SOCKET: &str = "keystile-run";
/// Holds the settings and secrets that are files.
const CONFIG: &str = "keystile-config";
/// Is empty, where otherwise the API server would mount a token.
const NO_TOKEN: &str = "keystile-no-token";

/// Every volume.
pub(super) const NAMES: [&str; 3] = [SOCKET, CONFIG, NO_TOKEN];

/// Where the socket's volume is mounted, in Envoy's container too.
pub(super) const SOCKET_FOLDER: &str = "/run/keystile";
const CONFIG_FOLDER: &str = "/etc/keystile";
const TOKEN_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Adds those that the pod has not.
pub(super) fn add(additions: &mut Additions<'_>, asked: &Asked, sidecar: &Sidecar) {
    let present = list(&additions.pod()["spec"], "volumes");
    let is_missing = |volume: &Value| present.iter().all(|other| other["name"] != volume["name"]);
    let missing: Vec<_> = volumes(asked, sidecar).into_iter().filter(is_missing).collect();
    if !missing.is_empty() {
        additions.insert("/spec/volumes", Place::Last, missing);
    }
}

fn volumes(asked: &Asked, sidecar: &Sidecar) -> [Value; 3] {
    let config = asked.config.as_ref().unwrap_or(&sidecar.config);
    let secret = asked.keys_secret.as_ref().unwrap_or(&sidecar.keys_secret);
    // In memory, so that no disk is waited for; the socket itself takes no room.
    let socket = json!({ "name": SOCKET, "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } });
    let config = json!({ "name": CONFIG, "projected": { "sources": [
        { "configMap": { "name": config, "optional": asked.config.is_none() } },
        { "secret": { "name": secret } },
    ] } });
    [socket, config, json!({ "name": NO_TOKEN, "emptyDir": {} })]
}

/// What kind of volume has this name of ours.
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
        // The API server leaves out its token where something is mounted already.
        { "name": NO_TOKEN, "mountPath": TOKEN_FOLDER, "readOnly": true },
    ])
}

/// Envoy's mount: it connects, and that needs no writing to the folder.
pub(super) fn envoy_mount() -> Value {
    json!({ "name": SOCKET, "mountPath": SOCKET_FOLDER, "readOnly": true })
}

/// Whether a container has the socket where it belongs.
pub(super) fn mounts_socket(container: &Value) -> bool {
    socket_folder_mount(container).is_some_and(|mount| mount["name"] == SOCKET)
}

/// What a container has mounted at the socket's folder.
pub(super) fn socket_folder_mount(container: &Value) -> Option<&Value> {
    let at_folder = |mount: &&Value| {
        mount["mountPath"].as_str().is_some_and(|path| path.trim_end_matches('/') == SOCKET_FOLDER)
    };
    list(container, "volumeMounts").iter().find(at_folder)
}
