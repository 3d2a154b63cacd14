//! Names and ports that the sidecar needs and a pod uses for something else.

use serde_json::Value;

use super::{container, volumes};
use crate::injector::{
    annotations::PodOptions,
    pod::{InvalidPod, containers, list},
    sidecar::Sidecar,
};

/// Checks that the pod leaves the sidecar its names and its port.
///
/// # Errors
/// [`InvalidPod`] when it does not.
pub(super) fn check(pod: &Value, options: &PodOptions, sidecar: &Sidecar) -> Result<(), InvalidPod> {
    if !pod["spec"].is_object() {
        return Err(InvalidPod("the pod has no spec".into()));
    }
    for (kind, _, other) in containers(pod) {
        let name = other["name"].as_str().unwrap_or_default();
        if name == container::NAME {
            // Injected before, or written by hand for the same purpose.
            if volumes::mounts_socket(other) {
                continue;
            }
            return Err(InvalidPod(format!("the pod has a container of its own named {name}; rename it")));
        }
        // The sidecar starts after the other init containers have ended, unless it is one itself.
        if options.no_native_sidecar && kind == "initContainers" && other["restartPolicy"] != "Always" {
            continue;
        }
        let port = u64::from(sidecar.admin_port);
        if list(other, "ports").iter().any(|taken| is_tcp(taken) && taken["containerPort"] == port) {
            return Err(InvalidPod(format!(
                "TCP port {port} is container {name}'s, and the sidecar's for probes and metrics; \
                 move it, or set KEYSTILE_INJECT_ADMIN_PORT of the injector"
            )));
        }
    }
    for volume in list(&pod["spec"], "volumes") {
        let name = volume["name"].as_str().unwrap_or_default();
        if volumes::kind(name).is_some_and(|kind| volume[kind].is_null()) {
            return Err(InvalidPod(format!("the pod has a volume of its own named {name}; rename it")));
        }
    }
    Ok(())
}

/// Whether a container's port is one of TCP. Ports of UDP and SCTP are numbered apart.
fn is_tcp(port: &Value) -> bool {
    let protocol = &port["protocol"];
    protocol.is_null() || protocol == "" || protocol == "TCP"
}
