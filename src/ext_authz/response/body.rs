//! The body of a denial, in the form that the caller's programs expect.

use serde_json::json;

use crate::{config::DenyFormat, decision::Reason};

/// The `Content-Type` of a form.
pub(super) fn content_type(format: DenyFormat) -> &'static str {
    match format {
        DenyFormat::Problem => "application/problem+json",
        DenyFormat::Openai => "application/json",
        DenyFormat::Text => "text/plain; charset=utf-8",
    }
}

/// The body before and after the id of the request.
pub(super) fn around_request_id(format: DenyFormat, reason: Reason) -> (String, String) {
    /// Stands for the id. No other text of a body holds it.
    const REQUEST_ID: &str = "@request-id@";
    let body = write(format, reason, REQUEST_ID);
    let (before, after) = body.split_once(REQUEST_ID).unwrap_or((&body, ""));
    (before.to_owned(), after.to_owned())
}

/// The body: the code for programs, a sentence for people, and the id to ask the operator about.
pub(super) fn write(format: DenyFormat, reason: Reason, request_id: &str) -> String {
    let (status, code, sentence) = (reason.status(), reason.code(), reason.sentence());
    match format {
        DenyFormat::Problem => json!({
            "type": format!("urn:keystile:denial:{code}"),
            "title": title(status),
            "status": status,
            "detail": sentence,
            "code": code,
            "request_id": request_id,
        })
        .to_string(),
        DenyFormat::Openai => json!({
            "error": {
                "message": sentence,
                "type": openai_type(status),
                "param": null,
                "code": code,
                "request_id": request_id,
            }
        })
        .to_string(),
        DenyFormat::Text => format!("{code}: {sentence} [{request_id}]\n"),
    }
}

/// The name of a status (RFC 9110, section 15).
fn title(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        429 => "Too Many Requests",
        _ => "Service Unavailable",
    }
}

/// The type of the error in OpenAI's API.
fn openai_type(status: u16) -> &'static str {
    match status {
        400 => "invalid_request_error",
        401 => "authentication_error",
        402 => "insufficient_quota",
        403 => "permission_error",
        429 => "rate_limit_error",
        _ => "server_error",
    }
}
