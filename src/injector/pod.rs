//! How a pod is read: as raw JSON, so that fields of later Kubernetes versions are kept.

use serde_json::Value;

/// Why a pod is not admitted. The text names the field and the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPod(pub String);

/// A list in an object; empty where the object has none of this name.
pub(super) fn list<'a>(object: &'a Value, name: &str) -> &'a [Value] {
    object[name].as_array().map_or(&[], Vec::as_slice)
}

/// All containers. Each comes with the name of its list and its index there.
pub(super) fn containers(pod: &Value) -> impl Iterator<Item = (&'static str, usize, &Value)> {
    ["containers", "initContainers"].into_iter().flat_map(|kind| {
        list(&pod["spec"], kind).iter().enumerate().map(move |(index, container)| (kind, index, container))
    })
}
