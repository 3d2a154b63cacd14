//! Bodies of requests: bounded in size and time, JSON only.

use std::time::Duration;

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::FromRequest,
    http::{Request, StatusCode, header::CONTENT_TYPE},
};
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::{
    api::Api,
    problem::{Answer, Problem},
};
use crate::store::json_object;

/// Maximum size, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// Deadline of a body.
const DEADLINE: Duration = Duration::from_secs(10);

/// The body of a request that is JSON.
pub(super) struct JsonBody(pub(super) Bytes);

/// The body of a request that is a JSON merge patch.
pub(super) struct PatchBody(pub(super) Bytes);

const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";

impl JsonBody {
    /// The members of the object.
    pub(super) fn object(&self) -> Answer<Map<String, Value>> {
        let members = json_object(&self.0)?;
        refuse_nul(&members)?;
        Ok(members)
    }
}

impl PatchBody {
    /// The members of the object.
    pub(super) fn object(&self) -> Answer<Map<String, Value>> {
        JsonBody(self.0.clone()).object()
    }
}

/// Refuses members that are left.
pub(super) fn nothing_else(members: &Map<String, Value>) -> Answer<()> {
    match members.keys().next() {
        Some(name) => Err(Problem::invalid(name, format!("{name}: is no field of this request"))),
        None => Ok(()),
    }
}

/// Databases refuse the character, some with an error that looks like an outage.
fn refuse_nul(members: &Map<String, Value>) -> Answer<()> {
    for (name, value) in members {
        if has_nul(value) {
            return Err(Problem::invalid(name, "has the character U+0000"));
        }
    }
    Ok(())
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(entries) => entries.iter().any(has_nul),
        Value::Object(members) => members.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        _ => false,
    }
}

impl FromRequest<Api> for JsonBody {
    type Rejection = Problem;

    async fn from_request(request: Request<Body>, _: &Api) -> Result<Self, Problem> {
        read(request, JSON).await.map(Self)
    }
}

impl FromRequest<Api> for PatchBody {
    type Rejection = Problem;

    async fn from_request(request: Request<Body>, _: &Api) -> Result<Self, Problem> {
        read(request, MERGE_PATCH).await.map(Self)
    }
}

async fn read(request: Request<Body>, accepted: &'static str) -> Answer<Bytes> {
    let value = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = value.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case(accepted) {
        return Err(Problem::unsupported(accepted));
    }
    match timeout(DEADLINE, to_bytes(request.into_body(), MAX_BODY)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if is_too_large(&error) => {
            let detail = format!("the body is over {MAX_BODY} bytes");
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail))
        }
        Ok(Err(_)) => Err(Problem::malformed("the body ended early")),
        Err(_) => {
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body was not received within 10 s"))
        }
    }
}

fn is_too_large(error: &axum::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        source = error.source();
    }
    false
}
