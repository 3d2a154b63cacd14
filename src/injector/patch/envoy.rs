//! Envoy's container, which gets to see the socket.

use serde_json::Value;

use super::{
    Refused,
    additions::{Additions, Place},
    containers, volumes,
};
use crate::injector::asked::Asked;

/// What Envoy's container is called, where the pod does not say.
const NAMES: [&str; 2] = ["envoy", "istio-proxy"];

/// Adds the mount, unless it is there; warns where there is no Envoy.
///
/// # Errors
/// When something else is mounted in its place.
pub(super) fn add_mount(additions: &mut Additions<'_>, asked: &Asked) -> Result<Option<String>, Refused> {
    let names = asked.envoy_container.as_ref().map_or(NAMES.to_vec(), |name| vec![name.as_str()]);
    let Some((kind, index, container)) = names.iter().find_map(|name| named(additions.pod(), name)) else {
        let names = names.join(" or ");
        return Ok(Some(format!(
            "keystile: no container named {names} yet; an Envoy of another name needs the annotation keystile.dev/envoy-container"
        )));
    };
    match volumes::socket_folder_mount(container) {
        Some(_) if volumes::mounts_socket(container) => {}
        Some(other) => {
            return Err(Refused(format!(
                "container {} has volume {} at {}, where the socket has to be; mount it elsewhere",
                container["name"],
                other["name"],
                volumes::SOCKET_FOLDER
            )));
        }
        None => {
            let mounts = format!("/spec/{kind}/{index}/volumeMounts");
            additions.insert(&mounts, Place::Last, vec![volumes::envoy_mount()]);
        }
    }
    Ok(None)
}

fn named<'a>(pod: &'a Value, name: &str) -> Option<(&'static str, usize, &'a Value)> {
    containers(pod).find(|(_, _, container)| container["name"] == name)
}
