//! A JSON patch under construction, on one pod.

use serde_json::{Map, Value, json};

/// What is added to a pod, in order.
pub(super) struct Additions<'a> {
    pod: &'a Value,
    patch: Vec<Value>,
}

impl<'a> Additions<'a> {
    pub(super) fn to(pod: &'a Value) -> Self {
        Self { pod, patch: Vec::new() }
    }

    /// The pod as it came.
    pub(super) fn pod(&self) -> &'a Value {
        self.pod
    }

    /// Puts an item into a list, at its end or its beginning; makes the list where there is none.
    /// Once for each list: places are those of the pod as it came.
    pub(super) fn insert(&mut self, list: &str, place: Place, items: Vec<Value>) {
        let Some(present) = self.pod.pointer(list).and_then(Value::as_array) else {
            return self.add(list, json!(items));
        };
        let first = if place == Place::First { 0 } else { present.len() };
        for (index, item) in (first..).zip(items) {
            self.add(&format!("{list}/{index}"), item);
        }
    }

    /// Sets annotations that the pod does not have.
    pub(super) fn annotate(&mut self, annotations: &[(&str, String)]) {
        let present = &self.pod["metadata"]["annotations"];
        if !present.is_object() && !annotations.is_empty() {
            let all: Map<_, _> =
                annotations.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
            return self.add("/metadata/annotations", Value::Object(all));
        }
        for (name, value) in annotations {
            self.add(&format!("/metadata/annotations/{}", name.replace('/', "~1")), json!(value));
        }
    }

    pub(super) fn into_patch(self) -> Vec<Value> {
        self.patch
    }

    fn add(&mut self, path: &str, value: Value) {
        self.patch.push(json!({ "op": "add", "path": path, "value": value }));
    }
}

/// Where in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    First,
    Last,
}
