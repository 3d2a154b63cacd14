//! `admission.k8s.io` AdmissionReview, in and out: what the API server asks, and how it is answered.

use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::{Value, json};

use super::patch::{Injection, Refused};

/// What the API server asks.
#[derive(Debug)]
pub(super) struct Review {
    api_version: String,
    request: Request,
}

/// The fields that count; there are more.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    kind: Named,
    #[serde(default)]
    resource: Named,
    #[serde(default)]
    sub_resource: Option<String>,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    object: Value,
}

#[derive(Debug, Default, Deserialize)]
struct Named {
    #[serde(default)]
    group: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    resource: String,
}

/// Why something is no question that can be answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    /// It is not JSON, or has fields of the wrong type.
    #[error("not an AdmissionReview: {0}")]
    Json(#[from] serde_json::Error),
    /// It is JSON of another kind or version.
    #[error("not an admission.k8s.io/v1 or v1beta1 AdmissionReview")]
    Kind,
    /// There is nothing to answer to.
    #[error("the request has no uid")]
    NoUid,
    /// A pod is to be created, and there is none.
    #[error("the request has no object")]
    NoObject,
}

impl Review {
    /// Reads a request's body.
    ///
    /// # Errors
    /// When it is none that can be answered.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let mut envelope: Value = serde_json::from_slice(body)?;
        let api_version = match envelope["apiVersion"].as_str() {
            Some(version @ ("admission.k8s.io/v1" | "admission.k8s.io/v1beta1")) => version.to_owned(),
            _ => return Err(Malformed::Kind),
        };
        if envelope["kind"] != "AdmissionReview" {
            return Err(Malformed::Kind);
        }
        let request: Request = serde_json::from_value(envelope["request"].take())?;
        if request.uid.is_empty() {
            return Err(Malformed::NoUid);
        }
        let review = Self { api_version, request };
        match review.creates_pod() && !review.request.object.is_object() {
            true => Err(Malformed::NoObject),
            false => Ok(review),
        }
    }

    /// The pod that is to be created; none for every other request.
    pub(super) fn pod(&self) -> Option<&Value> {
        self.creates_pod().then_some(&self.request.object)
    }

    /// Which pod, for the log: one of a ReplicaSet has no name yet.
    pub(super) fn pod_name(&self) -> String {
        let metadata = &self.request.object["metadata"];
        let name = metadata["name"].as_str().or(metadata["generateName"].as_str()).unwrap_or("?");
        format!("{}/{name}", self.request.namespace)
    }

    fn creates_pod(&self) -> bool {
        let Request { operation, kind, resource, sub_resource, .. } = &self.request;
        let whole = sub_resource.as_deref().unwrap_or_default().is_empty();
        operation == "CREATE"
            && whole
            && (kind.group.as_str(), kind.kind.as_str()) == ("", "Pod")
            && (resource.group.as_str(), resource.resource.as_str()) == ("", "pods")
    }

    /// The answer, as JSON.
    pub(super) fn answer(&self, outcome: &Result<Injection, Refused>) -> Value {
        let mut response = json!({ "uid": self.request.uid, "allowed": outcome.is_ok() });
        match outcome {
            Ok(Injection { patch, warnings }) => {
                // A patch type without a patch is an error to the API server.
                if !patch.is_empty() {
                    response["patchType"] = json!("JSONPatch");
                    response["patch"] = json!(BASE64.encode(json!(patch).to_string().as_bytes()));
                }
                if !warnings.is_empty() {
                    response["warnings"] = json!(warnings);
                }
            }
            Err(Refused(message)) => {
                response["status"] = json!({
                    "status": "Failure",
                    "code": 422,
                    "reason": "Invalid",
                    "message": format!("keystile: {message}"),
                });
            }
        }
        json!({ "apiVersion": self.api_version, "kind": "AdmissionReview", "response": response })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(change: impl FnOnce(&mut Value)) -> Result<Review, Malformed> {
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
    fn only_the_creation_of_a_pod_is_looked_at() {
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
    fn what_cannot_be_answered_is_malformed() {
        assert!(matches!(Review::parse(b"{"), Err(Malformed::Json(_))));
        assert!(matches!(Review::parse(b"[]"), Err(Malformed::Kind)));
        assert!(matches!(
            review(|body| body["apiVersion"] = json!("admission.k8s.io/v2")),
            Err(Malformed::Kind)
        ));
        assert!(matches!(review(|body| body["kind"] = json!("Pod")), Err(Malformed::Kind)));
        assert!(matches!(review(|body| body["request"]["uid"] = json!("")), Err(Malformed::NoUid)));
        assert!(matches!(review(|body| body["request"]["uid"] = json!(1)), Err(Malformed::Json(_))));
        assert!(matches!(review(|body| body["request"] = Value::Null), Err(Malformed::Json(_))));
        assert!(matches!(review(|body| body["request"]["object"] = Value::Null), Err(Malformed::NoObject)));
    }

    #[test]
    fn answer_has_the_version_and_uid_of_its_question() {
        let old = review(|body| body["apiVersion"] = json!("admission.k8s.io/v1beta1")).expect("parses");
        let answer = old.answer(&Ok(Injection::default()));
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1beta1");
        assert_eq!(answer["response"], json!({ "uid": "705ab4f5", "allowed": true }));
    }

    #[test]
    fn patch_is_base64_and_a_refusal_says_why() {
        let review = review(|_| {}).expect("parses");
        let patch = vec![json!({ "op": "add", "path": "/a", "value": 1 })];
        let answer = review.answer(&Ok(Injection { patch: patch.clone(), warnings: vec!["so".into()] }));
        let bytes =
            BASE64.decode(answer["response"]["patch"].as_str().expect("text").as_bytes()).expect("base64");
        assert_eq!(serde_json::from_slice::<Vec<Value>>(&bytes).expect("JSON"), patch);
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
        assert_eq!(answer["response"]["warnings"], json!(["so"]));
        let answer = review.answer(&Err(Refused("no".into())));
        assert_eq!(answer["response"]["allowed"], false);
        assert_eq!(answer["response"]["status"]["message"], "keystile: no");
    }
}
