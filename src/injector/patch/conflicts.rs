//! Names and ports of ours that a pod has given to something else.

use serde_json::Value;

use super::{Refused, Sidecar, container, containers, list, volumes};

/// # Errors
/// When the pod and the sidecar could not both be what they should.
pub(super) fn check(pod: &Value, sidecar: &Sidecar) -> Result<(), Refused> {
    if !pod["spec"].is_object() {
        return Err(Refused("the pod has no spec".into()));
    }
    for (_, _, other) in containers(pod) {
        let name = other["name"].as_str().unwrap_or_default();
        if name == container::NAME {
            // Injected already, or written by hand for the same end.
            if volumes::mounts_socket(other) {
                continue;
            }
            return Err(Refused(format!("the pod has a container of its own named {name}; rename it")));
        }
        let port = u64::from(sidecar.admin_port);
        if list(other, "ports").iter().any(|taken| taken["containerPort"].as_u64() == Some(port)) {
            return Err(Refused(format!(
                "port {port} is container {name}'s, and the sidecar's for probes and metrics; \
                 move it, or set KEYSTILE_INJECT_ADMIN_PORT of the injector"
            )));
        }
    }
    for volume in list(&pod["spec"], "volumes") {
        let name = volume["name"].as_str().unwrap_or_default();
        if volumes::kind(name).is_some_and(|kind| volume[kind].is_null()) {
            return Err(Refused(format!("the pod has a volume of its own named {name}; rename it")));
        }
    }
    Ok(())
}
