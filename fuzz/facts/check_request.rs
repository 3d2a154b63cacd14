//! No request is admitted without a key that the store knows, and it knows none. The input is an encoded
//! `CheckRequest`.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use envoy_types::{
    ext_authz::v3::pb::{CheckRequest, CheckResponse, HttpResponse},
    pb::envoy::service::auth::v3::{
        AttributeContext,
        attribute_context::{self, HttpRequest},
    },
};
use keystile::{
    attributes::route::RouteSettings,
    clock::Timestamps,
    credential::{MIN_LEN, Prefix},
    decision::Tier,
    ext_authz::EncodedRecord,
    store::{KeyStore, Lookup, StoreError},
};
use prost::Message;

#[allow(clippy::duplicate_mod, reason = "the tests load two targets that share it")]
#[path = "../service.rs"]
mod service;

/// One input at a time.
static DENIALS: LazyLock<Mutex<Denials>> = LazyLock::new(|| Mutex::new(Denials::start()));

/// Fails if a fact does not hold for this input.
pub fn check(bytes: &[u8]) {
    if let Ok(request) = CheckRequest::decode(bytes) {
        let denials = DENIALS.lock().unwrap_or_else(PoisonError::into_inner);
        denials.denies(bytes, request);
    }
}

struct Denials {
    service: service::Service<Empty>,
    /// Denials of every kind. Their words are not secret.
    words: Vec<u8>,
}

/// A store that knows no key.
struct Empty;

impl KeyStore<EncodedRecord> for Empty {
    async fn records(&self, _: Prefix, _: Timestamps) -> Result<Arc<Lookup<EncodedRecord>>, StoreError> {
        Ok(Arc::new(Lookup::fresh([], Tier::Database)))
    }
}

impl Denials {
    fn start() -> Self {
        let mut denials = Self { service: service::Service::start(Empty), words: Vec::new() };
        for kind in ["application/json", "application/grpc"] {
            for (name, value) in [("", ""), ("x-api-key", "short"), ("x-api-key", "unknown0")] {
                denials.words.extend(denials.denial(&[("content-type", kind), (name, value)], None));
            }
            let two =
                [("content-type", kind), ("x-api-key", "unknown0"), ("authorization", "Bearer unknown1")];
            denials.words.extend(denials.denial(&two, None));
            denials.words.extend(denials.denial(&two, Some("keystile.unknown")));
        }
        // Of the form of a key, so that it is looked up.
        let unknown = [("x-api-key", "ks_unknown0unknown0unknown0unknown0unknown0")];
        denials.words.extend(denials.denial(&unknown, None));
        denials
    }

    /// Asks with these headers and this setting; the answer as bytes.
    fn denial(&self, headers: &[(&str, &str)], setting: Option<&str>) -> Vec<u8> {
        let headers = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let http = HttpRequest { headers, ..HttpRequest::default() };
        let context = AttributeContext {
            request: Some(attribute_context::Request { http: Some(http), ..Default::default() }),
            context_extensions: setting.map(|name| (name.to_owned(), String::new())).into_iter().collect(),
            ..AttributeContext::default()
        };
        shown(self.service.ask(&CheckRequest { attributes: Some(context) }.encode_to_vec()))
    }

    fn denies(&self, message: &[u8], request: CheckRequest) {
        let sent = request.attributes.unwrap_or_default();
        let answer = self.service.ask(message);
        let status = answer.status.as_ref().expect("an explicit status").code;
        match &answer.http_response {
            Some(HttpResponse::OkResponse(_)) => {
                let settings = sent.context_extensions.iter();
                let settings = settings.map(|(name, value)| (name.as_str(), value.as_str()));
                let route = RouteSettings::parse(settings).expect("settings that can be followed");
                assert!(route.admits_anonymous() || route.shadow == Some(true), "allowed: {answer:?}");
                assert_eq!(status, 0);
            }
            Some(HttpResponse::DeniedResponse(denied)) => {
                assert_ne!(status, 0);
                assert!(denied.status.as_ref().is_some_and(|status| (400..600).contains(&status.code)));
                let http = sent.request.and_then(|request| request.http).unwrap_or_default();
                self.keeps_secrets(&http, &shown(answer));
            }
            other => panic!("neither allowed nor denied: {other:?}"),
        }
    }

    /// What was presented is in no denial, unless it is one of our words or in the request's id.
    fn keeps_secrets(&self, http: &HttpRequest, answer: &[u8]) {
        let ids: Vec<u8> =
            values(http, &["x-request-id"]).chain([http.id.as_bytes()]).flatten().copied().collect();
        let ids: Vec<u8> = ids.into_iter().filter(u8::is_ascii_graphic).collect();
        for secret in presented(http).filter(|secret| contains(answer, secret)) {
            let is_ours = contains(&self.words, secret) || contains(&ids, secret);
            assert!(is_ours, "{} is in {}", secret.escape_ascii(), answer.escape_ascii());
        }
    }
}

/// An answer as bytes, without the name of a setting that is wrong: that is the operator's.
fn shown(mut answer: CheckResponse) -> Vec<u8> {
    answer.dynamic_metadata.as_mut().map(|metadata| metadata.fields.remove("route_error"));
    answer.encode_to_vec()
}

/// Everything in the places of credentials that is long enough for one, and what follows a `=`.
fn presented(http: &HttpRequest) -> impl Iterator<Item = &[u8]> {
    let query = http.path.split_once('?').map(|(_, query)| query.as_bytes());
    let values = values(http, &["authorization", "x-api-key", "cookie"]).chain(query);
    let parts =
        values.flat_map(|value| value.split(|byte| !byte.is_ascii_graphic() || b",;&".contains(byte)));
    parts
        .flat_map(|part| [part, part.splitn(2, |byte| *byte == b'=').last().unwrap_or_default()])
        .filter(|part| part.len() >= MIN_LEN)
}

/// The values of these headers, in either form in which Envoy sends them.
fn values<'a>(http: &'a HttpRequest, names: &'a [&str]) -> impl Iterator<Item = &'a [u8]> {
    let is_meant = |name: &str| names.iter().any(|wanted| wanted.eq_ignore_ascii_case(name));
    let joined = http.headers.iter().map(|(name, value)| (name, value.as_bytes()));
    let raw = http.header_map.iter().flat_map(|map| &map.headers);
    let raw = raw.flat_map(|header| {
        [(&header.key, header.value.as_bytes()), (&header.key, header.raw_value.as_slice())]
    });
    joined.chain(raw).filter(move |(name, _)| is_meant(name)).map(|(_, value)| value)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
