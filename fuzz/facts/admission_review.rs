//! The answer to an AdmissionReview is for its request: its version and uid come back, only the creation of a pod is changed, and
//! the patch applies to it. The input is the body of a request.

use std::sync::LazyLock;

use clap::{Args, Command, FromArgMatches};
use data_encoding::BASE64;
use json_patch::Patch;
use keystile::{
    config::InjectOptions,
    injector::{Review, Scope, Sidecar, review},
};
use serde_json::Value;

static SIDECAR: LazyLock<Sidecar> = LazyLock::new(|| {
    let command = InjectOptions::augment_args(Command::new("inject"));
    let matches = command.get_matches_from(["inject", "--image", "keystile:1", "--self-signed", "x"]);
    Sidecar::from(&InjectOptions::from_arg_matches(&matches).expect("complete"))
});

/// Fails if a fact does not hold for this input.
pub fn check(body: &[u8]) {
    let sent = serde_json::from_slice::<Value>(body);
    let read = match (Review::parse(body), sent) {
        (Ok(read), Ok(sent)) => Some((read, sent)),
        (Err(_), Ok(sent)) => return assert!(!is_review(&sent), "{sent} is refused"),
        (read, sent) => return assert!(read.is_err() && sent.is_err(), "it is no JSON, and was read"),
    };
    let Some((read, mut sent)) = read else { return };
    let request = &sent["request"];
    let is_pod = request["operation"] == "CREATE"
        && request["subResource"].as_str().unwrap_or_default().is_empty()
        && request["kind"]["group"] == ""
        && request["kind"]["kind"] == "Pod"
        && request["resource"]["group"] == ""
        && request["resource"]["resource"] == "pods";
    assert_eq!(read.pod(), is_pod.then_some(&request["object"]), "a pod is what is created");

    for scope in [Scope::LabelledPods, Scope::EnabledNamespace] {
        let outcome = read.pod().map_or(Ok(Default::default()), |pod| review(pod, scope, &SIDECAR));
        let answer = read.answer(&outcome).expect("JSON");
        let response = &answer["response"];
        assert_eq!(answer["kind"], "AdmissionReview");
        assert_eq!(answer["apiVersion"], sent["apiVersion"]);
        assert_eq!(response["uid"], sent["request"]["uid"]);
        assert_eq!(response["allowed"], outcome.is_ok());
        assert_eq!(answer.as_object().map(serde_json::Map::len), Some(3), "{answer}");
        let Some(patch) = response["patch"].as_str() else {
            assert!(response.get("patchType").is_none(), "{answer}");
            continue;
        };
        assert!(is_pod && response["patchType"] == "JSONPatch", "{answer}");
        let patch = BASE64.decode(patch.as_bytes()).expect("base64");
        let patch: Patch = serde_json::from_slice(&patch).expect("a patch");
        let pod = &mut sent["request"]["object"];
        let before = pod.clone();
        let applied = json_patch::patch(pod, &patch);
        assert!(applied.is_ok() || !pod["spec"].is_object() || !is_typed(&before), "{patch} does not apply");
        *pod = before;
    }
}

/// Whether the API server may have sent it, with nothing but what the API demands.
fn is_review(sent: &Value) -> bool {
    let is_text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let request = &sent["request"];
    let is_named = |object: &str, name: &str| {
        let fields = &request[object];
        fields["group"].is_string() && is_text(&fields["version"]) && is_text(&fields[name])
    };
    matches!(sent["apiVersion"].as_str(), Some("admission.k8s.io/v1" | "admission.k8s.io/v1beta1"))
        && sent["kind"] == "AdmissionReview"
        && is_text(&request["uid"])
        && matches!(request["operation"].as_str(), Some("CREATE" | "UPDATE" | "DELETE" | "CONNECT"))
        && is_named("kind", "kind")
        && is_named("resource", "resource")
        && request["object"].is_object()
        && request.as_object().is_some_and(|fields| fields.len() == 5)
}

/// Whether lists are lists, and objects are objects.
fn is_typed(pod: &Value) -> bool {
    let lists = ["containers", "initContainers", "volumes"];
    let is_list = |name: &&str| match &pod["spec"][*name] {
        Value::Null => true,
        Value::Array(entries) => entries.iter().all(|entry| entry["name"].is_string()),
        _ => false,
    };
    pod["metadata"].is_object() && lists.iter().all(is_list)
}
