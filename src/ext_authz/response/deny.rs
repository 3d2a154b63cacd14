//! Responses that deny a request. What the caller reads depends on the reason, and on the state of the key's limits
//! where these are the reason.

use bytes::Bytes;
use tonic::Code;

use super::{
    body,
    header_option::put_header,
    metadata::{self, CheckFacts, OutcomeFacts},
    rate_limit,
};
use crate::{
    config::{DenyFormat, RateLimitFields},
    decision::{self, Reason},
    ext_authz::{
        config::ExtAuthzConfig,
        field_filter::FieldFilter,
        grpc::frame::framed,
        outcome::{Denial, PerReason},
        proto::writer::{put_int, put_message, put_message_of},
        request::ParsedRequest,
    },
    limits::whole_seconds,
};

/// Writes the responses that deny requests.
pub(crate) struct DenyResponses {
    http: PerReason<DenialPart>,
    grpc: PerReason<DenialPart>,
    metadata: FieldFilter,
    rate_limit_fields: RateLimitFields,
}

/// The part of a response that the reason and the caller's protocol alone decide.
struct DenialPart {
    /// A field of a `CheckResponse`: the status.
    status: Box<[u8]>,
    /// Fields of a `CheckResponse`: the metadata.
    metadata: Box<[u8]>,
    /// Fields of a `DeniedHttpResponse`: the HTTP status and the headers.
    denied: Box<[u8]>,
    /// The body before and after the id of the request.
    body: (String, String),
    /// Whether the body is JSON, in which text is escaped.
    is_json: bool,
}

/// Numbers of fields of `CheckResponse` and `DeniedHttpResponse` (envoy/service/auth/v3/external_auth.proto).
const STATUS: u32 = 1;
const DENIED_RESPONSE: u32 = 2;
const HTTP_STATUS: u32 = 1;
const HEADERS: u32 = 2;
const BODY: u32 = 3;

/// Room for the part of a response that the request decides, in bytes.
const REQUEST_PART: usize = 96;

impl DenyResponses {
    pub(crate) fn new(config: &ExtAuthzConfig) -> Self {
        Self {
            http: PerReason::new(|reason| DenialPart::new(reason, config.deny_format, false, config)),
            // Envoy makes a gRPC response of it, with the body as its message.
            grpc: PerReason::new(|reason| DenialPart::new(reason, DenyFormat::Text, true, config)),
            metadata: config.metadata.clone(),
            rate_limit_fields: config.rate_limit_fields,
        }
    }

    /// The response that denies this request.
    pub(crate) fn write(&self, denial: &Denial, request: &ParsedRequest<'_>) -> Bytes {
        let attributes = &request.attributes;
        let parts = if attributes.is_grpc { &self.grpc } else { &self.http };
        let part = &parts[denial.reason];
        let proven = denial.proven.as_ref();
        let limit_status = proven.and_then(|proven| proven.limit_status.as_ref());
        let record_metadata = proven.map_or(&[][..], |proven| proven.record.metadata(&self.metadata));
        let facts = CheckFacts::new(proven, request);

        let id = attributes.printable_request_id();
        let request_length = REQUEST_PART + id.len() + rate_limit::expected_length(limit_status);
        let length = part.length() + record_metadata.len() + request_length;
        framed(length, |response| {
            response.extend_from_slice(&part.status);
            response.extend_from_slice(&part.metadata);
            response.extend_from_slice(record_metadata);
            metadata::put_check(response, &facts, &self.metadata);
            let expected = part.denied_length() + id.len();
            put_message_of(response, DENIED_RESPONSE, expected, |denied| {
                denied.extend_from_slice(&part.denied);
                put_retry_after(denied, denial);
                if let Some(limit_status) = limit_status {
                    rate_limit::put_client_headers(denied, HEADERS, limit_status, self.rate_limit_fields);
                }
                part.put_body(denied, &id);
            });
        })
    }

    /// The response that denies a request of which nothing is known.
    pub(crate) fn write_unread(&self, reason: Reason) -> Bytes {
        let part = &self.http[reason];
        framed(part.length() + REQUEST_PART, |response| {
            response.extend_from_slice(&part.status);
            put_message_of(response, DENIED_RESPONSE, part.denied_length(), |denied| {
                denied.extend_from_slice(&part.denied);
                put_retry_after(denied, &decision::Denial::<()>::from(reason));
                part.put_body(denied, "");
            });
        })
    }
}

impl DenialPart {
    fn new(reason: Reason, format: DenyFormat, is_grpc: bool, config: &ExtAuthzConfig) -> Self {
        let (mut status, mut metadata, mut denied) = (Vec::new(), Vec::new(), Vec::new());
        put_message(&mut status, STATUS, |status| put_int(status, 1, grpc_code(reason).into()));
        let code = reason.code();
        let facts = OutcomeFacts { decision: "deny", result: code, reason: Some(code) };
        metadata::put_outcome(&mut metadata, &facts, &config.metadata);
        put_message(&mut denied, HTTP_STATUS, |status| put_int(status, 1, reason.status().into()));
        put_header(&mut denied, HEADERS, "content-type", body::content_type(format));
        if let Some(challenge) = challenge(reason) {
            put_header(&mut denied, HEADERS, "www-authenticate", challenge);
        }
        let (before, mut after) = body::around_request_id(format, reason);
        if is_grpc {
            // Envoy would guess the code.
            put_header(&mut denied, HEADERS, "grpc-status", &i32::from(grpc_code(reason)).to_string());
            after.truncate(after.trim_end().len());
        }
        Self {
            status: status.into(),
            metadata: metadata.into(),
            denied: denied.into(),
            body: (before, after),
            is_json: format != DenyFormat::Text,
        }
    }

    fn length(&self) -> usize {
        self.status.len() + self.metadata.len() + self.denied_length()
    }

    fn denied_length(&self) -> usize {
        self.denied.len() + self.body.0.len() + self.body.1.len()
    }

    /// Writes the body, also for HEAD: Envoy does not send it then, but its type and length.
    fn put_body(&self, denied: &mut Vec<u8>, request_id: &str) {
        let (before, after) = &self.body;
        put_message_of(denied, BODY, before.len() + request_id.len() + after.len(), |body| {
            body.extend_from_slice(before.as_bytes());
            for byte in request_id.bytes() {
                if self.is_json && matches!(byte, b'"' | b'\\') {
                    body.push(b'\\');
                }
                body.push(byte);
            }
            body.extend_from_slice(after.as_bytes());
        });
    }
}

fn put_retry_after<R>(denied: &mut Vec<u8>, denial: &decision::Denial<R>) {
    if let Some(wait) = denial.retry_after {
        put_header(denied, HEADERS, "retry-after", itoa::Buffer::new().format(whole_seconds(wait)));
    }
}

/// `WWW-Authenticate` of a 401 (RFC 6750, section 3).
fn challenge(reason: Reason) -> Option<&'static str> {
    match (reason.status(), reason) {
        (401, Reason::MissingCredential) => Some("Bearer realm=\"api\""),
        (401, Reason::MalformedCredential | Reason::AmbiguousCredential) => {
            Some("Bearer realm=\"api\", error=\"invalid_request\"")
        }
        (401, _) => Some("Bearer realm=\"api\", error=\"invalid_token\""),
        _ => None,
    }
}

/// The gRPC status: any but OK makes Envoy deny, and gRPC callers read it.
fn grpc_code(reason: Reason) -> Code {
    match reason.status() {
        400 => Code::InvalidArgument,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        402 | 429 => Code::ResourceExhausted,
        _ => Code::Unavailable,
    }
}
