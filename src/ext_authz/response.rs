//! Writes the answer that Envoy acts on.
//!
//! Each one carries an explicit status: Envoy takes a `CheckResponse` without one for an allow.

use envoy_types::{
    ext_authz::v3::pb::{
        CheckResponse, DeniedHttpResponse, HeaderAppendAction, HeaderValue, HeaderValueOption, HttpResponse,
        HttpStatus, OkHttpResponse,
    },
    pb::google::{protobuf::Struct, rpc},
};
use tonic::Code;

use super::{
    ExtAuthzConfig, client_headers,
    headers::{self, Told, Values},
    request::{Copies, Strip},
    rows::Rows,
    truncation::Truncation,
};
use crate::{
    attributes::Attributes,
    config::{DenyFormat, RateLimitFields},
    decision::{Denial, Reason},
    limits::{Standing, whole_seconds},
};

mod body;

/// Lets the request pass: each header of the table is set, or removed where a client may have sent it.
pub(super) fn allow(
    told: Told<'_>,
    metadata: Struct,
    strip: &Strip<'_>,
    copies: &Copies,
    config: &ExtAuthzConfig,
    truncation: &Truncation,
) -> CheckResponse {
    let mut ok = stripped(strip);
    truncation.note(&tell(&mut ok, Rows::All, &told, copies, config), told.record);
    allowed(metadata, Some(ok))
}

/// An answer that lets a request pass; `ok` may be encoded apart.
pub(super) fn allowed(metadata: Struct, ok: Option<OkHttpResponse>) -> CheckResponse {
    CheckResponse {
        status: Some(status(Code::Ok)),
        dynamic_metadata: Some(metadata),
        http_response: ok.map(HttpResponse::OkResponse),
    }
}

/// Adds what the upstream is told, and the client of its limits. Returns the headers whose value is too long.
pub(super) fn tell(
    ok: &mut OkHttpResponse,
    rows: Rows,
    told: &Told<'_>,
    copies: &Copies,
    config: &ExtAuthzConfig,
) -> Vec<&'static str> {
    let Values { each, truncated } = Values::of(told, &config.upstream_headers);
    for (header, value) in
        headers::TABLE.iter().zip(each).filter(|(header, _)| rows.have(header.is_counted()))
    {
        match value {
            Some(value) => ok.headers.push(overwrite(header.name, value)),
            None if copies.may_have(header.name) => ok.headers_to_remove.push(header.name.to_owned()),
            None => {}
        }
    }
    if rows == Rows::All {
        ok.response_headers_to_add = limits(told.standing, config.rate_limit_fields);
    }
    truncated
}

/// Takes the credential out of the request, wherever it was, and does nothing else.
pub(super) fn stripped(strip: &Strip<'_>) -> OkHttpResponse {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let mut ok = OkHttpResponse {
        headers_to_remove: owned(&strip.headers),
        query_parameters_to_remove: owned(&strip.query_parameters),
        ..OkHttpResponse::default()
    };
    match &strip.cookie {
        Some(rest) if rest.is_empty() => ok.headers_to_remove.push("cookie".to_owned()),
        Some(rest) => ok.headers.push(overwrite("cookie", rest.as_str())),
        None => {}
    }
    ok
}

/// Turns the request away. What the caller is told depends on the reason, and on what is left of the
/// key's limits where these are the reason.
pub(super) fn deny(
    denial: &Denial,
    metadata: Struct,
    attributes: &Attributes<'_>,
    config: &ExtAuthzConfig,
) -> CheckResponse {
    let reason = denial.reason;
    let format = if attributes.is_grpc { DenyFormat::Text } else { config.deny_format };
    let mut set = vec![overwrite("content-type", body::content_type(format))];
    set.extend(challenge(reason).map(|challenge| overwrite("www-authenticate", challenge)));
    set.extend(retry_after(denial));
    let standing = denial.proven.as_ref().and_then(|proven| proven.standing.as_ref());
    set.extend(limits(standing, config.rate_limit_fields));
    // Also for HEAD: Envoy keeps the body to itself, and answers with its type and length.
    let mut body = body::write(format, reason, &attributes.printable_request_id());
    if attributes.is_grpc {
        // Envoy makes a gRPC answer of ours, with the body as its message, and would guess the code.
        set.push(overwrite("grpc-status", i32::from(code(reason)).to_string()));
        body.truncate(body.trim_end().len());
    }
    denied(reason, set, body, Some(metadata))
}

/// Turns away a request of which nothing is known.
pub(super) fn deny_unknown(reason: Reason, format: DenyFormat) -> CheckResponse {
    let mut set = vec![overwrite("content-type", body::content_type(format))];
    set.extend(retry_after(&reason.into()));
    denied(reason, set, body::write(format, reason, ""), None)
}

fn denied(
    reason: Reason,
    headers: Vec<HeaderValueOption>,
    body: String,
    dynamic_metadata: Option<Struct>,
) -> CheckResponse {
    let http = HttpStatus { code: reason.status().into() };
    let denied = DeniedHttpResponse { status: Some(http), headers, body };
    CheckResponse {
        status: Some(status(code(reason))),
        dynamic_metadata,
        http_response: Some(HttpResponse::DeniedResponse(denied)),
    }
}

fn retry_after(denial: &Denial) -> Option<HeaderValueOption> {
    denial.retry_after.map(|wait| overwrite("retry-after", whole_seconds(wait).to_string()))
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

/// What the client is told of its limits. Ours alone count: an upstream's of the same name would be about
/// something else.
fn limits(standing: Option<&Standing>, fields: RateLimitFields) -> Vec<HeaderValueOption> {
    let Some(standing) = standing else { return Vec::new() };
    let numbers = client_headers::x_ratelimit(standing).map(|(name, value)| (name, value.to_string()));
    let draft = (fields == RateLimitFields::Draft10).then(|| client_headers::draft_10(standing));
    numbers.chain(draft.into_iter().flatten()).map(|(name, value)| overwrite(name, value)).collect()
}

/// The gRPC status: any but OK makes Envoy deny, and gRPC callers are told it.
fn code(reason: Reason) -> Code {
    match reason.status() {
        400 => Code::InvalidArgument,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        402 | 429 => Code::ResourceExhausted,
        _ => Code::Unavailable,
    }
}

fn status(code: Code) -> rpc::Status {
    rpc::Status { code: code.into(), ..rpc::Status::default() }
}

/// Envoy 1.37 honours the action and appends by default; 1.40 overwrites whatever it says.
fn overwrite(name: &str, value: impl Into<String>) -> HeaderValueOption {
    let header = HeaderValue { key: name.to_owned(), value: value.into(), ..HeaderValue::default() };
    HeaderValueOption {
        header: Some(header),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    }
}
