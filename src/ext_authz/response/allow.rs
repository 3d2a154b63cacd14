//! Responses that let a request pass: each header of the table is set, or removed where a client may have sent it, and
//! the credential is taken out.

use std::borrow::Cow;

use bytes::Bytes;

use super::{
    header_option::put_header,
    headers::{RecordValues, Source, TABLE, UpstreamHeader},
    metadata::{self, CheckFacts, OutcomeFacts},
    rate_limit, rotation,
    truncation::Truncation,
};
use crate::{
    config::{RateLimitFields, RemoveHeaders, RotationLink},
    decision::{Proven, Reason, Tier},
    ext_authz::{
        config::ExtAuthzConfig,
        encoded_record::{EncodedRecord, HeaderSet, RecordHeaders},
        field_filter::FieldFilter,
        grpc::frame::framed,
        outcome::{Admission, PerReason},
        proto::writer::{put_bytes, put_message, put_message_of},
        request::{CredentialRemoval, ParsedRequest, SpoofedHeaders},
    },
    limits::LimitStatus,
    metrics::Metrics,
    record::{KeyRecord, StoredRecord},
};

/// Writes the responses that let requests pass.
pub(crate) struct AllowResponses {
    key: AdmissionPart,
    anonymous: AdmissionPart,
    shadow: PerReason<AdmissionPart>,
    /// Where no key was proven.
    no_record: RecordHeaders,
    /// Where no limits are counted. Fields of an `OkHttpResponse`.
    no_limits: Box<[u8]>,
    upstream_headers: FieldFilter,
    metadata: FieldFilter,
    remove_headers: RemoveHeaders,
    forward_credential: bool,
    rate_limit_fields: RateLimitFields,
    rotation_link: Option<RotationLink>,
    truncation: Truncation,
}

/// The part of a response that the kind of admission alone decides.
struct AdmissionPart {
    /// Fields of a `CheckResponse`: status and metadata.
    response: Box<[u8]>,
    /// Fields of an `OkHttpResponse`: the header with the result.
    ok: Box<[u8]>,
}

/// Numbers of fields of `CheckResponse` and `OkHttpResponse` (envoy/service/auth/v3/external_auth.proto).
const STATUS: u32 = 1;
const OK_RESPONSE: u32 = 3;
const HEADERS: u32 = 2;
const HEADERS_TO_REMOVE: u32 = 5;
const RESPONSE_HEADERS_TO_ADD: u32 = 6;
const QUERY_PARAMETERS_TO_REMOVE: u32 = 8;

/// Room for the part of a response that the request decides, in bytes.
const REQUEST_PART: usize = 64;

impl AllowResponses {
    pub(crate) fn new(config: &ExtAuthzConfig, metrics: &Metrics) -> Self {
        let part = |result, reason| AdmissionPart::new(result, reason, config);
        Self {
            key: part("allow", None),
            anonymous: part("anonymous", None),
            shadow: PerReason::new(|reason| part(reason.code(), Some(reason))),
            no_record: RecordHeaders::new(&[], config.request.remove_headers),
            no_limits: absent_limits(config.request.remove_headers),
            upstream_headers: config.upstream_headers.clone(),
            metadata: config.metadata.clone(),
            remove_headers: config.request.remove_headers,
            forward_credential: config.forward_credential,
            rate_limit_fields: config.rate_limit_fields,
            rotation_link: config.rotation_link.clone(),
            truncation: Truncation::new(metrics),
        }
    }

    /// The response that lets this request pass.
    pub(crate) fn write(&self, admission: &Admission, request: &ParsedRequest<'_>) -> Bytes {
        let part = match admission {
            Admission::Key(_) => &self.key,
            Admission::Anonymous => &self.anonymous,
            Admission::Shadow(denial) => &self.shadow[denial.reason],
        };
        let proven = admission.proven();
        let limit_status = proven.and_then(|proven| proven.limit_status.as_ref());
        let record_metadata = proven.map_or(Cow::Borrowed(&[][..]), |proven| self.record_metadata(proven));
        let record = proven.map_or(Cow::Borrowed(&self.no_record), |proven| self.record_headers(proven));
        let facts = CheckFacts::new(proven, request);

        let no_limits = if limit_status.is_some() { &[][..] } else { &self.no_limits };
        let ok_length = part.ok.len() + record.encoded.len() + no_limits.len();
        let limits_length = rate_limit::expected_length(limit_status);
        let length = part.response.len() + record_metadata.len() + ok_length + REQUEST_PART + limits_length;
        framed(length, |response| {
            response.extend_from_slice(&part.response);
            response.extend_from_slice(&record_metadata);
            metadata::put_check(response, &facts, &self.metadata);
            put_message_of(response, OK_RESPONSE, ok_length, |ok| {
                ok.extend_from_slice(&part.ok);
                ok.extend_from_slice(&record.encoded);
                ok.extend_from_slice(no_limits);
                if let Some(limit_status) = limit_status {
                    self.put_limits(ok, limit_status);
                }
                if let SpoofedHeaders::Seen(seen) = request.spoofed {
                    self.put_spoofed(ok, seen, record.set, limit_status);
                }
                if !self.forward_credential {
                    put_removal(ok, &request.removal, proven.is_some());
                }
            });
        })
    }

    /// The metadata about a record. It is kept from the second use on: many keys are used once.
    fn record_metadata<'a>(&self, proven: &'a Proven<EncodedRecord>) -> Cow<'a, [u8]> {
        if proven.tier == Tier::Memory {
            return Cow::Borrowed(proven.record.metadata(&self.metadata));
        }
        Cow::Owned(encode_metadata(proven.record.record(), &self.metadata))
    }

    /// The headers about a record, kept from the second use on.
    fn record_headers<'a>(&self, proven: &'a Proven<EncodedRecord>) -> Cow<'a, RecordHeaders> {
        let encode = || {
            let key = proven.record.record();
            let RecordValues { values, truncated } = RecordValues::new(key, &self.upstream_headers);
            self.truncation.note(&truncated, key);
            let headers = RecordHeaders::new(&values, self.remove_headers);
            headers.with_client_headers(key, self.rotation_link.as_ref())
        };
        if proven.tier == Tier::Memory {
            return Cow::Borrowed(proven.record.headers.get_or_init(encode));
        }
        Cow::Owned(encode())
    }

    /// Writes the state of the key's limits, for the upstream and for the client.
    fn put_limits(&self, ok: &mut Vec<u8>, limit_status: &LimitStatus) {
        let mut digits = itoa::Buffer::new();
        for header in limit_headers() {
            match self.limit_value(header, Some(limit_status)) {
                Some(value) => put_header(ok, HEADERS, header.name, digits.format(value)),
                None => put_absent(ok, header.name, self.remove_headers),
            }
        }
        rate_limit::put_client_headers(ok, RESPONSE_HEADERS_TO_ADD, limit_status, self.rate_limit_fields);
    }

    fn limit_value(&self, header: &UpstreamHeader, limit_status: Option<&LimitStatus>) -> Option<u64> {
        let value = header.limit_value(limit_status?)?;
        self.upstream_headers.has(header.name).then_some(value)
    }

    /// Removes the headers with Keystile's names that came with the request and are not set.
    fn put_spoofed(
        &self,
        ok: &mut Vec<u8>,
        seen: HeaderSet,
        set: HeaderSet,
        limit_status: Option<&LimitStatus>,
    ) {
        for place in seen.places() {
            let header = &TABLE[place];
            let is_set = match header.source {
                Source::Outcome => self.upstream_headers.has(header.name),
                Source::Record(_) | Source::Truncated => set.contains(place),
                Source::Limit(..) => self.limit_value(header, limit_status).is_some(),
            };
            if !is_set {
                put_bytes(ok, HEADERS_TO_REMOVE, header.name.as_bytes());
            }
        }
    }
}

impl EncodedRecord {
    /// The metadata about the record, encoded at its first use.
    pub(super) fn metadata(&self, sent: &FieldFilter) -> &[u8] {
        self.metadata.get_or_init(|| encode_metadata(self.record(), sent).into())
    }
}

fn encode_metadata(record: &KeyRecord, sent: &FieldFilter) -> Vec<u8> {
    let mut encoded = Vec::new();
    metadata::put_record(&mut encoded, record, sent);
    encoded
}

impl AdmissionPart {
    fn new(result: &'static str, reason: Option<Reason>, config: &ExtAuthzConfig) -> Self {
        let (mut response, mut ok) = (Vec::new(), Vec::new());
        // A status with nothing in it is OK.
        put_message(&mut response, STATUS, |_| {});
        let facts = OutcomeFacts { decision: "allow", result, reason: reason.map(Reason::code) };
        metadata::put_outcome(&mut response, &facts, &config.metadata);
        for header in TABLE.iter().filter(|header| matches!(header.source, Source::Outcome)) {
            if config.upstream_headers.has(header.name) {
                put_header(&mut ok, HEADERS, header.name, result);
            } else {
                put_absent(&mut ok, header.name, config.request.remove_headers);
            }
        }
        Self { response: response.into(), ok: ok.into() }
    }
}

impl RecordHeaders {
    /// The headers with these values, by the order of the table; those without a value are removed, unless only those
    /// are that came with the request.
    fn new(values: &[Option<String>], remove: RemoveHeaders) -> Self {
        let (mut encoded, mut set) = (Vec::new(), HeaderSet::default());
        for (place, header) in TABLE.iter().enumerate() {
            if !matches!(header.source, Source::Record(_) | Source::Truncated) {
                continue;
            }
            if let Some(Some(value)) = values.get(place) {
                put_header(&mut encoded, HEADERS, header.name, value);
                set.insert(place);
            } else {
                put_absent(&mut encoded, header.name, remove);
            }
        }
        Self { encoded: encoded.into(), set }
    }

    /// The same, with what the record has to say to the client.
    fn with_client_headers(self, record: &KeyRecord, link: Option<&RotationLink>) -> Self {
        let mut encoded = Vec::from(self.encoded);
        rotation::put_client_headers(&mut encoded, RESPONSE_HEADERS_TO_ADD, record, link);
        Self { encoded: encoded.into(), ..self }
    }
}

/// The removal of every header about limits, where all headers that are not set are removed.
fn absent_limits(remove: RemoveHeaders) -> Box<[u8]> {
    let mut encoded = Vec::new();
    for header in limit_headers() {
        put_absent(&mut encoded, header.name, remove);
    }
    encoded.into()
}

fn limit_headers() -> impl Iterator<Item = &'static UpstreamHeader> {
    TABLE.iter().filter(|header| matches!(header.source, Source::Limit(..)))
}

/// Writes the removal of a header that is not set, where all such headers are removed.
fn put_absent(ok: &mut Vec<u8>, name: &str, remove: RemoveHeaders) {
    if remove == RemoveHeaders::All {
        put_bytes(ok, HEADERS_TO_REMOVE, name.as_bytes());
    }
}

/// Writes what takes the credential out of the request, and with a proven key every foreign token.
fn put_removal(ok: &mut Vec<u8>, removal: &CredentialRemoval<'_>, is_proven: bool) {
    let foreign_headers = if is_proven { &removal.foreign_headers[..] } else { &[] };
    for name in removal.headers.iter().chain(foreign_headers) {
        put_bytes(ok, HEADERS_TO_REMOVE, name.as_bytes());
    }
    for name in &removal.query_parameters {
        put_bytes(ok, QUERY_PARAMETERS_TO_REMOVE, name.as_bytes());
    }
    match &removal.cookie {
        Some(rest) if rest.is_empty() => put_bytes(ok, HEADERS_TO_REMOVE, b"cookie"),
        Some(rest) => put_header(ok, HEADERS, "cookie", rest),
        None => {}
    }
}
