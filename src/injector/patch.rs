//! The JSON patch that injects a sidecar into a pod. Pure: it reads raw JSON and adds, and never replaces or removes.
//!
//! A second review adds only what is still missing. The API server asks again when another webhook has changed the
//! pod after this one, for example to add an Envoy.

use json_patch::Patch;
use serde_json::{Value, json};

use super::{
    annotations::{PodOptions, STATUS, Scope},
    pod::InvalidPod,
    sidecar::Sidecar,
};
use crate::version::VERSION;

mod additions;
mod conflicts;
mod container;
mod envoy;
mod resources;
mod volumes;

use additions::Additions;

/// The outcome of a pod that is admitted.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Injection {
    /// The patch, which only adds; empty when the pod stays as it is.
    pub patch: Patch,
    /// Messages for the creator of the pod.
    pub warnings: Vec<String>,
}

/// Decides what a pod gets.
///
/// # Errors
/// [`InvalidPod`] when its annotations cannot be honoured, or it uses a name that the sidecar needs.
pub fn review(pod: &Value, scope: Scope, sidecar: &Sidecar) -> Result<Injection, InvalidPod> {
    let Some(options) = PodOptions::parse(pod, scope)? else { return Ok(Injection::default()) };
    if let Some(reason) = unsupported(pod) {
        let warning =
            format!("keystile: not injected, since {reason}; requests to this pod are not authorized");
        return Ok(Injection { warnings: vec![warning], ..Injection::default() });
    }
    conflicts::check(pod, &options, sidecar)?;

    let mut additions = Additions::to(pod);
    volumes::add(&mut additions, &options, sidecar);
    let warning = envoy::add_mount(&mut additions, &options)?;
    // After the mounts: a new first init container changes the index of the others.
    container::add(&mut additions, &options, sidecar)?;
    additions.annotate(&annotations(pod, sidecar));
    Ok(Injection { patch: additions.into_patch(), warnings: Vec::from_iter(warning) })
}

/// Why a sidecar would be of no use in this pod.
fn unsupported(pod: &Value) -> Option<&'static str> {
    let spec = &pod["spec"];
    let is_windows = |name: &Value| name == "windows";
    if spec["hostNetwork"] == true {
        Some("the pod has the host's network, whose ports it would share with every other")
    } else if is_windows(&spec["os"]["name"]) || is_windows(&spec["nodeSelector"]["kubernetes.io/os"]) {
        Some("the pod runs on Windows")
    } else if pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string() {
        Some("the pod is a static one of its node, and what is created here only mirrors it")
    } else {
        None
    }
}

/// The annotations that the pod lacks.
fn annotations(pod: &Value, sidecar: &Sidecar) -> Vec<(&'static str, String)> {
    let present = &pod["metadata"]["annotations"];
    let mut missing = Vec::new();
    // All or none: Keystile's path with another container's port would be wrong.
    let scrape = [
        ("prometheus.io/scrape", "true".to_owned()),
        ("prometheus.io/port", sidecar.admin_port.to_string()),
        ("prometheus.io/path", "/metrics".to_owned()),
    ];
    if scrape.iter().all(|(name, _)| present[name].is_null()) {
        missing.extend(scrape);
    }
    if present[STATUS].is_null() {
        let status = json!({
            "version": VERSION,
            "container": container::NAME,
            "volumes": volumes::NAMES,
        });
        missing.push((STATUS, status.to_string()));
    }
    missing
}

#[cfg(test)]
mod tests;
