//! Reads and answers `admission.k8s.io` AdmissionReviews, versions v1 and v1beta1.

use anyhow::Context;
use data_encoding::BASE64;
use kube_core::{
    DynamicObject, TypeMeta,
    admission::{AdmissionRequest, AdmissionResponse, META_KIND, Operation},
    response::Status,
};
use serde_json::{Value, json};

use super::{patch::Injection, pod::InvalidPod};

/// A review that the API server asks for.
#[derive(Debug)]
pub struct Review {
    request: AdmissionRequest<DynamicObject>,
    /// The pod to be created, as raw JSON; none for every other request.
    pod: Option<Value>,
}

/// Why a body cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// It is not JSON, or has fields of the wrong type.
    #[error("not an AdmissionReview: {0}")]
    Json(#[from] serde_json::Error),
    /// It is JSON of another kind or version.
    #[error("not an admission.k8s.io/v1 or v1beta1 AdmissionReview")]
    Kind,
    /// The answer has to repeat the uid.
    #[error("the request has no uid")]
    NoUid,
    /// A pod is to be created, and the request holds none.
    #[error("the request has no object")]
    NoObject,
}

impl Review {
    /// Reads a request's body.
    ///
    /// # Errors
    /// [`ReviewError`] when the body cannot be answered.
    pub fn parse(body: &[u8]) -> Result<Self, ReviewError> {
        let mut envelope: Value = serde_json::from_slice(body)?;
        let Some(version @ ("admission.k8s.io/v1" | "admission.k8s.io/v1beta1")) =
            envelope["apiVersion"].as_str()
        else {
            return Err(ReviewError::Kind);
        };
        if envelope["kind"] != META_KIND {
            return Err(ReviewError::Kind);
        }
        let types = TypeMeta { api_version: version.to_owned(), kind: META_KIND.to_owned() };
        let mut request = envelope["request"].take();
        let mut object = Value::Null;
        if let Some(fields) = request.as_object_mut() {
            // Not typed: the pod keeps fields that the types do not know.
            object = fields.remove("object").unwrap_or_default();
            fields.remove("oldObject");
            // The type requires it, and nothing here reads it.
            fields.entry("userInfo").or_insert_with(|| json!({}));
        }
        let mut request: AdmissionRequest<DynamicObject> = serde_json::from_value(request)?;
        if request.uid.is_empty() {
            return Err(ReviewError::NoUid);
        }
        request.types = types;
        if !creates_pod(&request) {
            return Ok(Self { request, pod: None });
        }
        if !object.is_object() {
            return Err(ReviewError::NoObject);
        }
        Ok(Self { request, pod: Some(object) })
    }

    /// The pod to be created; none for every other request.
    pub fn pod(&self) -> Option<&Value> {
        self.pod.as_ref()
    }

    /// The pod's namespace and name, for the log. A pod of a ReplicaSet has no name yet.
    pub(super) fn pod_name(&self) -> String {
        let metadata = self.pod.as_ref().map(|pod| &pod["metadata"]).unwrap_or_default();
        let name = metadata["name"].as_str().or(metadata["generateName"].as_str()).unwrap_or("?");
        format!("{}/{name}", self.request.namespace.as_deref().unwrap_or_default())
    }

    /// The answer as JSON.
    ///
    /// # Errors
    /// When it cannot be written as JSON, which would be a bug.
    pub fn answer(&self, outcome: &Result<Injection, InvalidPod>) -> anyhow::Result<Value> {
        let mut response = AdmissionResponse::from(&self.request);
        match outcome {
            Ok(Injection { patch, warnings }) => {
                // A patch type without a patch is an error to the API server.
                if !patch.is_empty() {
                    response = response.with_patch(patch.clone())?;
                }
                response.warnings = Some(warnings.clone()).filter(|warnings| !warnings.is_empty());
            }
            Err(InvalidPod(message)) => {
                response.allowed = false;
                response.result = Status::failure(&format!("keystile: {message}"), "Invalid").with_code(422);
            }
        }
        // kube-core writes bytes as a list of numbers. The API of Kubernetes is defined with base64.
        let patch = response.patch.take();
        let mut review = serde_json::to_value(response.into_review())?;
        let response = review["response"].as_object_mut().context("a response is an object")?;
        if let Some(patch) = patch {
            response.insert("patch".to_owned(), json!(BASE64.encode(&patch)));
        }
        if outcome.is_ok() {
            response.remove("status");
        }
        Ok(review)
    }
}

fn creates_pod(request: &AdmissionRequest<DynamicObject>) -> bool {
    let AdmissionRequest { operation, kind, resource, sub_resource, .. } = request;
    *operation == Operation::Create
        && sub_resource.as_deref().unwrap_or_default().is_empty()
        && (&*kind.group, &*kind.kind) == ("", "Pod")
        && (&*resource.group, &*resource.resource) == ("", "pods")
}

#[cfg(test)]
mod tests {
    use json_patch::{AddOperation, Patch, PatchOperation, jsonptr::PointerBuf};

    use super::*;

    fn review(change: impl FnOnce(&mut Value)) -> Result<Review, ReviewError> {
        let mut body = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "705ab4f5",
                "kind": { "group": "", "version": "v1", "kind": "Pod" },
                "resource": { "group": "", "version": "v1", "resource": "pods" },
                "operation": "CREATE",
                "namespace": "shop",
                "object": { "metadata": { "generateName": "cart-" } },
                "oldObject": null,
            },
        });
        change(&mut body);
        Review::parse(body.to_string().as_bytes())
    }

    #[test]
    fn only_the_creation_of_a_pod_is_reviewed() {
        let created = review(|_| {}).expect("parses");
        assert!(created.pod().is_some());
        assert_eq!(created.pod_name(), "shop/cart-");
        let others: [(&str, Value); 4] = [
            ("/request/operation", json!("UPDATE")),
            ("/request/operation", json!("DELETE")),
            ("/request/kind/kind", json!("Deployment")),
            ("/request/resource/resource", json!("deployments")),
        ];
        for (pointer, value) in others {
            let other = review(|body| *body.pointer_mut(pointer).expect("there") = value).expect("parses");
            assert!(other.pod().is_none(), "{pointer}");
        }
        let ephemeral = review(|body| body["request"]["subResource"] = json!("ephemeralcontainers"));
        assert!(ephemeral.expect("parses").pod().is_none());
        let deleted = review(|body| {
            body["request"]["operation"] = json!("DELETE");
            body["request"]["object"] = Value::Null;
        });
        assert!(deleted.expect("needs no object").pod().is_none());
    }

    #[test]
    fn invalid_body_is_refused() {
        assert!(matches!(Review::parse(b"{"), Err(ReviewError::Json(_))));
        assert!(matches!(Review::parse(b"[]"), Err(ReviewError::Kind)));
        assert!(matches!(
            review(|body| body["apiVersion"] = json!("admission.k8s.io/v2")),
            Err(ReviewError::Kind)
        ));
        assert!(matches!(review(|body| body["kind"] = json!("Pod")), Err(ReviewError::Kind)));
        assert!(matches!(review(|body| body["request"]["uid"] = json!("")), Err(ReviewError::NoUid)));
        assert!(matches!(review(|body| body["request"]["uid"] = json!(1)), Err(ReviewError::Json(_))));
        for request in [Value::Null, json!([]), json!("CREATE"), json!(1)] {
            assert!(matches!(review(|body| body["request"] = request), Err(ReviewError::Json(_))));
        }
        assert!(matches!(review(|body| body["request"]["object"] = Value::Null), Err(ReviewError::NoObject)));
    }

    #[test]
    fn answer_has_the_version_and_uid_of_its_request() {
        let old = review(|body| body["apiVersion"] = json!("admission.k8s.io/v1beta1")).expect("parses");
        let answer = old.answer(&Ok(Injection::default())).expect("JSON");
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1beta1");
        assert_eq!(answer["response"], json!({ "uid": "705ab4f5", "allowed": true }));
    }

    #[test]
    fn pod_keeps_fields_that_kube_core_does_not_know() {
        let object =
            json!({ "metadata": { "fieldOfTheFuture": 1, "creationTimestamp": null }, "spec": null });
        let review = review(|body| body["request"]["object"] = object.clone()).expect("parses");
        assert_eq!(review.pod(), Some(&object));
    }

    #[test]
    fn patch_is_base64_and_an_invalid_pod_gets_its_reason() {
        let review = review(|_| {}).expect("parses");
        let add = AddOperation { path: PointerBuf::from_tokens(["a"]), value: json!(1) };
        let patch = Patch(vec![PatchOperation::Add(add)]);
        let answer = review.answer(&Ok(Injection { patch, warnings: vec!["so".into()] })).expect("JSON");
        let bytes =
            BASE64.decode(answer["response"]["patch"].as_str().expect("text").as_bytes()).expect("base64");
        assert_eq!(
            serde_json::from_slice::<Vec<Value>>(&bytes).expect("JSON"),
            [json!({ "op": "add", "path": "/a", "value": 1 })]
        );
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
        assert_eq!(answer["response"]["warnings"], json!(["so"]));
        let answer = review.answer(&Err(InvalidPod("no".into()))).expect("JSON");
        assert_eq!(answer["response"]["allowed"], false);
        assert_eq!(
            answer["response"]["status"],
            json!({ "status": "Failure", "code": 422, "reason": "Invalid", "message": "keystile: no" })
        );
    }
}
