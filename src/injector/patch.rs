//! What a pod lacks, as a JSON patch: pure, on raw JSON, and made of `add` alone.
//!
//! A second pass adds only what is still missing, whoever added the rest: the API server asks
//! again when another webhook has changed the pod after us, say to add an Envoy.

use serde_json::{Value, json};

use super::asked::{Asked, STATUS, Scope};
use crate::config::{InjectOptions, Quantity};

mod additions;
mod conflicts;
mod container;
mod envoy;
mod resources;
#[cfg(test)]
mod tests;
mod volumes;

use additions::Additions;

/// What every sidecar gets, as far as its pod asks for nothing else.
#[derive(Debug, Clone)]
pub struct Sidecar {
    image: String,
    image_pull_policy: String,
    config: String,
    keys_secret: String,
    cpu_request: Quantity,
    memory_request: Quantity,
    memory_limit: Quantity,
    guaranteed_cpu: Quantity,
    admin_port: u16,
}

/// What becomes of a pod that is let in.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Injection {
    /// Operations of RFC 6902; none when the pod stays as it is.
    pub patch: Vec<Value>,
    /// What whoever creates the pod should know.
    pub warnings: Vec<String>,
}

/// Why a pod is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

impl From<&InjectOptions> for Sidecar {
    fn from(options: &InjectOptions) -> Self {
        Self {
            image: options.image.clone(),
            image_pull_policy: options.image_pull_policy.clone(),
            config: options.config.clone(),
            keys_secret: options.keys_secret.clone(),
            cpu_request: options.cpu_request.clone(),
            memory_request: options.memory_request.clone(),
            memory_limit: options.memory_limit.clone(),
            guaranteed_cpu: options.guaranteed_cpu.clone(),
            admin_port: options.admin_port,
        }
    }
}

/// What is to be added to a pod.
///
/// # Errors
/// When the pod asks for what cannot be, or has taken a name that we need.
pub fn review(pod: &Value, scope: Scope, sidecar: &Sidecar) -> Result<Injection, Refused> {
    let Some(asked) = Asked::parse(pod, scope)? else { return Ok(Injection::default()) };
    if let Some(reason) = unsupported(pod) {
        let warning =
            format!("keystile: not injected, since {reason}; requests to this pod are not authorized");
        return Ok(Injection { patch: Vec::new(), warnings: vec![warning] });
    }
    conflicts::check(pod, sidecar)?;

    let mut additions = Additions::to(pod);
    volumes::add(&mut additions, &asked, sidecar);
    let warning = envoy::add_mount(&mut additions, &asked)?;
    // After the mounts: it moves the other init containers.
    container::add(&mut additions, &asked, sidecar)?;
    additions.annotate(&annotations(pod, sidecar));
    Ok(Injection { patch: additions.into_patch(), warnings: Vec::from_iter(warning) })
}

/// Why a sidecar would do no good here.
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

/// The annotations that are still to be set.
fn annotations(pod: &Value, sidecar: &Sidecar) -> Vec<(&'static str, String)> {
    let present = &pod["metadata"]["annotations"];
    let mut missing = Vec::new();
    // All or none: a path of ours beside a port of theirs would be wrong.
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
            "version": env!("CARGO_PKG_VERSION"),
            "container": container::NAME,
            "volumes": volumes::NAMES,
        });
        missing.push((STATUS, status.to_string()));
    }
    missing
}

/// A list of the pod's; empty where there is none.
fn list<'a>(object: &'a Value, name: &str) -> &'a [Value] {
    object[name].as_array().map_or(&[], Vec::as_slice)
}

/// All containers, with the list that each is in and its place there.
fn containers(pod: &Value) -> impl Iterator<Item = (&'static str, usize, &Value)> {
    ["containers", "initContainers"].into_iter().flat_map(|kind| {
        list(&pod["spec"], kind).iter().enumerate().map(move |(index, container)| (kind, index, container))
    })
}
