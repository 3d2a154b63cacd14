//! The mount of the socket in Envoy's container.

use json_patch::jsonptr::PointerBuf;
use serde_json::Value;

use super::{
    additions::{Additions, Place},
    volumes,
};
use crate::injector::{
    annotations::PodOptions,
    pod::{InvalidPod, containers},
};

/// The names of Envoy's container, where the pod names none.
const NAMES: [&str; 2] = ["envoy", "istio-proxy"];

/// Adds the mount, unless the container has it. Returns a warning where there is no Envoy.
///
/// # Errors
/// [`InvalidPod`] when something else is mounted in its place.
pub(super) fn add_mount(
    additions: &mut Additions<'_>,
    options: &PodOptions,
) -> Result<Option<String>, InvalidPod> {
    let names = options.envoy_container.as_ref().map_or(NAMES.to_vec(), |name| vec![name.as_str()]);
    let Some((kind, index, container)) = names.iter().find_map(|name| named(additions.pod(), name)) else {
        let names = names.join(" or ");
        return Ok(Some(format!(
            "keystile: no container named {names} yet; an Envoy of another name needs the annotation keystile.dev/envoy-container"
        )));
    };
    match volumes::socket_folder_mount(container) {
        Some(_) if volumes::mounts_socket(container) => {}
        Some(other) => {
            return Err(InvalidPod(format!(
                "container {} has volume {} at {}, where the socket has to be; mount it elsewhere",
                container["name"],
                other["name"],
                volumes::SOCKET_FOLDER
            )));
        }
        None => {
            let index = index.to_string();
            let mounts = PointerBuf::from_tokens(["spec", kind, &index, "volumeMounts"]);
            additions.insert(&mounts, Place::Last, vec![volumes::envoy_mount()]);
        }
    }
    Ok(None)
}

fn named<'a>(pod: &'a Value, name: &str) -> Option<(&'static str, usize, &'a Value)> {
    containers(pod).find(|(_, _, container)| container["name"] == name)
}
