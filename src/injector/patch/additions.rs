//! Builds a JSON patch (RFC 6902) for one pod, made of `add` alone.

use json_patch::{
    AddOperation, Patch, PatchOperation,
    jsonptr::{Pointer, PointerBuf},
};
use serde_json::{Map, Value};

/// The additions to a pod, in order.
pub(super) struct Additions<'a> {
    pod: &'a Value,
    operations: Vec<PatchOperation>,
}

/// Where in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    First,
    Last,
}

impl<'a> Additions<'a> {
    pub(super) fn to(pod: &'a Value) -> Self {
        Self { pod, operations: Vec::new() }
    }

    /// The pod before the patch.
    pub(super) fn pod(&self) -> &'a Value {
        self.pod
    }

    /// Inserts items at the end or the beginning of a list. Creates the list where there is none.
    ///
    /// Call it once for each list: an index is one of the pod before the patch.
    pub(super) fn insert(&mut self, list: &Pointer, place: Place, items: Vec<Value>) {
        let Some(present) = self.pod.pointer(list.as_str()).and_then(Value::as_array) else {
            return self.add(list.to_buf(), items.into());
        };
        let first = if place == Place::First { 0 } else { present.len() };
        for (index, item) in (first..).zip(items) {
            self.add(list.with_trailing_token(index), item);
        }
    }

    /// Adds annotations that the pod does not have.
    pub(super) fn annotate(&mut self, annotations: &[(&str, String)]) {
        let path = Pointer::from_static("/metadata/annotations");
        let present = &self.pod["metadata"]["annotations"];
        if !present.is_object() && !annotations.is_empty() {
            let all = annotations.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into()));
            return self.add(path.to_buf(), Value::Object(all.collect::<Map<_, _>>()));
        }
        for (name, value) in annotations {
            self.add(path.with_trailing_token(*name), value.clone().into());
        }
    }

    pub(super) fn into_patch(self) -> Patch {
        Patch(self.operations)
    }

    fn add(&mut self, path: PointerBuf, value: Value) {
        self.operations.push(PatchOperation::Add(AddOperation { path, value }));
    }
}
