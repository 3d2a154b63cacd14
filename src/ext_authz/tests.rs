//! Facts about the responses, over a store that does what each test wants.

use std::collections::HashMap;

use envoy_types::{
    ext_authz::v3::pb::{CheckRequest, HttpResponse},
    pb::{
        envoy::service::auth::v3::{
            AttributeContext,
            attribute_context::{HttpRequest, Request as RequestAttributes},
        },
        google::protobuf::value::Kind,
    },
};

use std::time::Instant;

use envoy_types::ext_authz::v3::pb::CheckResponse;
use prost::Message as _;
use tonic::Request;

use super::*;
use crate::{
    config::{BcryptCost, ClientAddress, DenyFormat, Mode, OnFailure, RateLimitFields, RemoveHeaders},
    credential::{CacheSecret, CacheSecrets, Prefix, brands::KeyBrands},
    decision::Tier,
    limiter::Limiter,
    record::fixtures,
    store::{Lookup, StoreError},
    verifier::{Verifier, VerifierConfig},
};

#[derive(Clone, Copy, PartialEq)]
enum Behaviour {
    Know,
    Fail,
    Panic,
    Hang,
    /// Neither answers a look-up nor Keystile's own reads.
    Lost,
    /// More is asked of it than it can answer.
    Busy,
    Revoked,
}

struct Scripted(Behaviour);

impl KeyStore<EncodedRecord> for Scripted {
    async fn records(&self, prefix: Prefix, _: Timestamps) -> Result<Arc<Lookup<EncodedRecord>>, StoreError> {
        let mut record = fixtures::record();
        match self.0 {
            Behaviour::Know => {}
            Behaviour::Fail => return Err(StoreError::Unavailable("as the test wants".into())),
            Behaviour::Panic => panic!("as the test wants"),
            Behaviour::Hang | Behaviour::Lost => std::future::pending().await,
            Behaviour::Busy => return Err(StoreError::Busy),
            Behaviour::Revoked => record.is_active = false,
        }
        let is_known = prefix == record.prefix;
        let records: Arc<[_]> = if is_known { [Arc::new(record.into())].into() } else { Arc::default() };
        Ok(Arc::new(Lookup::fresh(records, Tier::Database)))
    }

    fn is_lost(&self) -> bool {
        self.0 == Behaviour::Lost
    }
}

fn service(behaviour: Behaviour, on_failure: OnFailure) -> ExtAuthz<Scripted, Limiter> {
    let metrics = Metrics::new().expect("builds");
    let proofs = VerifierConfig {
        threads: 1,
        cost: BcryptCost::Fixed(4),
        failed_attempts: None,
        capacity: 100,
        proof_ttl: Duration::from_secs(60),
        negative_ttl: Duration::from_secs(10),
    };
    let verifier = Verifier::new(CacheSecrets::one(CacheSecret::random()), proofs, |_, _, _| (), &metrics);
    let config = ExtAuthzConfig { on_failure, ..config() };
    ExtAuthz::new(
        Authorizer::new(Scripted(behaviour), verifier, Limiter::Off),
        Usage::new(true, &metrics),
        config,
        &metrics,
    )
}

/// The defaults.
pub(super) fn config() -> ExtAuthzConfig {
    ExtAuthzConfig {
        request: RequestConfig {
            credential_sources: ["bearer", "header:x-api-key"]
                .map(|source| source.parse().expect("a source"))
                .into(),
            key_brands: KeyBrands::default(),
            client_address: ClientAddress::Auto,
            remove_headers: RemoveHeaders::All,
        },
        forward_credential: false,
        timeout: Duration::from_secs(2),
        on_failure: OnFailure::Deny,
        mode: Mode::Enforce,
        deny_format: DenyFormat::Problem,
        rotation_link: None,
        rate_limit_fields: RateLimitFields::None,
        upstream_headers: FieldFilter::all(),
        metadata: FieldFilter::all(),
    }
}

fn request(headers: &[(&str, &str)]) -> Request<CheckRequest> {
    let headers: HashMap<_, _> = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let http = HttpRequest { id: "stream-1".into(), headers, ..HttpRequest::default() };
    let http = RequestAttributes { http: Some(http), ..RequestAttributes::default() };
    let attributes = AttributeContext { request: Some(http), ..AttributeContext::default() };
    Request::new(CheckRequest { attributes: Some(attributes) })
}

fn good_request() -> Request<CheckRequest> {
    request(&[("x-api-key", fixtures::CREDENTIAL)])
}

/// gRPC status, HTTP status and code of an answer; an allow has HTTP status 0.
fn summary(answer: &CheckResponse) -> (i32, i32, String) {
    let grpc = answer.status.as_ref().expect("every answer has a status").code;
    match answer.http_response.as_ref().expect("every answer has an HTTP response") {
        HttpResponse::OkResponse(_) => (grpc, 0, String::new()),
        HttpResponse::DeniedResponse(denied) => {
            let body: serde_json::Value = serde_json::from_str(&denied.body).expect("a JSON body");
            let code = body["code"].as_str().expect("a code").to_owned();
            (grpc, denied.status.as_ref().expect("a status").code, code)
        }
        HttpResponse::ErrorResponse(_) => panic!("Envoy takes an error response for a failure"),
    }
}

/// Asks as Envoy does, by encoded messages.
async fn check(
    service: &ExtAuthz<Scripted, Limiter>,
    request: Request<CheckRequest>,
) -> Result<CheckResponse, Status> {
    let (metadata, _, message) = request.into_parts();
    let answer = service.check(&metadata.into_headers(), &message.encode_to_vec()).await?;
    Ok(CheckResponse::decode(&answer[5..]).expect("a message"))
}

async fn ask(behaviour: Behaviour, request: Request<CheckRequest>) -> CheckResponse {
    let service = service(behaviour, OnFailure::Deny);
    check(&service, request).await.expect("a response")
}

fn denied(grpc: Code, http: i32, code: &str) -> (i32, i32, String) {
    (grpc.into(), http, code.to_owned())
}

use tonic::Code;

#[tokio::test]
async fn every_outcome_has_an_explicit_status() {
    let allow = ask(Behaviour::Know, good_request()).await;
    assert_eq!(summary(&allow), denied(Code::Ok, 0, ""));
    for (behaviour, headers, expected) in [
        (Behaviour::Know, vec![], denied(Code::Unauthenticated, 401, "missing_credential")),
        (
            Behaviour::Know,
            vec![("x-api-key", "short")],
            denied(Code::Unauthenticated, 401, "malformed_credential"),
        ),
        (
            Behaviour::Know,
            vec![("x-api-key", fixtures::CREDENTIAL), ("authorization", "Bearer another-key")],
            denied(Code::Unauthenticated, 401, "ambiguous_credential"),
        ),
        (
            Behaviour::Know,
            vec![("x-api-key", "zz_unknown")],
            denied(Code::Unauthenticated, 401, "invalid_credential"),
        ),
        (
            Behaviour::Know,
            vec![("x-api-key", "ks_samplX")],
            denied(Code::Unauthenticated, 401, "invalid_credential"),
        ),
        (
            Behaviour::Revoked,
            vec![("x-api-key", fixtures::CREDENTIAL)],
            denied(Code::Unauthenticated, 401, "disabled"),
        ),
        (Behaviour::Fail, vec![("x-api-key", "zz_unknown")], denied(Code::Unavailable, 503, "unavailable")),
        (Behaviour::Panic, vec![("x-api-key", "zz_unknown")], denied(Code::Unavailable, 503, "unavailable")),
    ] {
        assert_eq!(summary(&ask(behaviour, request(&headers)).await), expected);
    }
}

#[tokio::test]
async fn request_without_attributes_is_denied() {
    for attributes in [None, Some(AttributeContext::default())] {
        let answer = ask(Behaviour::Know, Request::new(CheckRequest { attributes })).await;
        assert_eq!(summary(&answer), denied(Code::InvalidArgument, 400, "not_http"));
    }
}

/// As Envoy's filter for TCP connections sends it, and where a key is optional.
#[tokio::test]
async fn connection_without_http_is_denied_also_where_a_key_is_optional() {
    let extensions = [("keystile.credential".to_owned(), "optional".to_owned())];
    let attributes = AttributeContext {
        context_extensions: extensions.into(),
        request: Some(RequestAttributes::default()),
        ..AttributeContext::default()
    };
    let answer = ask(Behaviour::Know, Request::new(CheckRequest { attributes: Some(attributes) })).await;
    assert_eq!(summary(&answer), denied(Code::InvalidArgument, 400, "not_http"));
}

#[tokio::test]
async fn each_header_is_set_or_removed_never_both() {
    let answer = ask(Behaviour::Know, good_request()).await;
    let Some(HttpResponse::OkResponse(ok)) = answer.http_response else { panic!("allowed") };
    let set: Vec<_> =
        ok.headers.iter().map(|option| option.header.as_ref().expect("a header").key.clone()).collect();
    for header in headers::TABLE {
        let (set, removed) = (set.iter(), ok.headers_to_remove.iter());
        let times = set.chain(removed).filter(|name| *name == header.name).count();
        assert_eq!(times, 1, "{}", header.name);
    }
    assert!(ok.headers_to_remove.contains(&"x-api-key".to_owned()));
    let overwrite = |option: &_| -> bool {
        let option: &envoy_types::ext_authz::v3::pb::HeaderValueOption = option;
        option.append_action == 2
    };
    assert!(ok.headers.iter().all(overwrite), "OVERWRITE_IF_EXISTS_OR_ADD is 2");
}

#[tokio::test]
async fn unknown_prefix_and_wrong_secret_answer_alike() {
    let unknown = ask(Behaviour::Know, request(&[("x-api-key", "zz_unknown")])).await;
    let wrong = ask(Behaviour::Know, request(&[("x-api-key", "ks_samplX")])).await;
    assert_eq!(unknown, wrong);
}

#[tokio::test]
async fn metadata_names_the_proven_key_also_on_deny() {
    let text = |answer: &CheckResponse, name: &str| {
        let fields = &answer.dynamic_metadata.as_ref().expect("metadata").fields;
        match fields.get(name).and_then(|value| value.kind.clone()) {
            Some(Kind::StringValue(text)) => Some(text),
            _ => None,
        }
    };
    for (behaviour, decision, reason) in
        [(Behaviour::Know, "allow", None), (Behaviour::Revoked, "deny", Some("disabled"))]
    {
        let answer = ask(behaviour, good_request()).await;
        assert_eq!(text(&answer, "decision").as_deref(), Some(decision));
        assert_eq!(text(&answer, "reason").as_deref(), reason);
        assert_eq!(text(&answer, "key_id").as_deref(), Some("7"));
        assert_eq!(text(&answer, "tier").as_deref(), Some("database"));
    }
    let wrong = ask(Behaviour::Know, request(&[("x-api-key", "ks_samplX")])).await;
    assert_eq!(text(&wrong, "key_id"), None);
}

#[tokio::test]
async fn denial_carries_the_request_id_and_no_credential() {
    let headers = [("x-api-key", "ks_samplWrongSecret"), ("x-request-id", "abc-123")];
    let answer = ask(Behaviour::Know, request(&headers)).await;
    let shown = format!("{answer:?}");
    assert!(shown.contains("abc-123"));
    assert!(!shown.contains("WrongSecret"));
}

/// Every way to a denial that may be handed to Envoy's failure mode, and every one that must not be.
#[tokio::test]
async fn only_an_outage_of_the_store_is_deferred() {
    for (behaviour, key, expected) in [
        (Behaviour::Fail, fixtures::CREDENTIAL, None),
        (Behaviour::Lost, fixtures::CREDENTIAL, None),
        (Behaviour::Hang, fixtures::CREDENTIAL, Some("overloaded")),
        (Behaviour::Busy, fixtures::CREDENTIAL, Some("overloaded")),
        (Behaviour::Panic, fixtures::CREDENTIAL, Some("unavailable")),
        (Behaviour::Know, "ks_samplX", Some("invalid_credential")),
        (Behaviour::Know, "zz_unknown", Some("invalid_credential")),
        (Behaviour::Know, "short", Some("malformed_credential")),
    ] {
        let mut request = request(&[("x-api-key", key)]);
        request.metadata_mut().insert("grpc-timeout", "300m".parse().expect("a value"));
        match (check(&service(behaviour, OnFailure::Defer), request).await, expected) {
            (Err(status), None) => assert_eq!(status.code(), Code::Unavailable),
            (Ok(answer), Some(code)) => assert_eq!(summary(&answer).2, code),
            (answer, expected) => panic!("{key}: {answer:?}, and not {expected:?}"),
        }
    }
    let mut unread = good_request();
    unread.get_mut().attributes = None;
    let answer = check(&service(Behaviour::Fail, OnFailure::Defer), unread).await.expect("denied");
    assert_eq!(summary(&answer).2, "not_http");
}

#[tokio::test]
async fn answer_comes_before_envoys_deadline() {
    for (behaviour, code) in [(Behaviour::Hang, "overloaded"), (Behaviour::Lost, "unavailable")] {
        let mut request = good_request();
        request.metadata_mut().insert("grpc-timeout", "100m".parse().expect("a value"));
        let asked = Instant::now();
        let answer = ask(behaviour, request).await;
        // The service's own deadline is two seconds.
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        assert_eq!(summary(&answer), denied(Code::Unavailable, 503, code));
    }
}

/// It is moved when its task is made: kilobytes of room for what hardly ever happens would be copied each time.
#[test]
fn future_of_a_check_is_small() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("builds");
    let _entered = runtime.enter();
    let service = service(Behaviour::Know, OnFailure::Deny);
    let metadata = HeaderMap::new();
    let size = std::mem::size_of_val(&service.check(&metadata, &[]));
    println!("{size} bytes");
    assert!(size < 3200, "{size} bytes");
}
