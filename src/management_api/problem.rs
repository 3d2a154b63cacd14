//! Errors, as problem details (RFC 9457) in the form of the data path's denials.

use axum::{
    Json,
    http::{
        HeaderName, HeaderValue, StatusCode,
        header::{ACCEPT, ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use serde::{Serialize, Serializer};
use tracing::{error, warn};
use utoipa::ToSchema;

use super::access::Operation;
use crate::store::{ManagementError, PatchError, StoreError};

/// An error (RFC 9457).
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// `urn:keystile:management:` and the code.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    kind: ProblemType,
    /// The name of the status.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What is wrong, and how to correct it.
    detail: String,
    /// The error, for programs.
    code: &'static str,
    /// The field of the request that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    field: Option<Box<str>>,
    /// The id of the request, as in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    request_id: Option<Box<str>>,
    #[serde(skip)]
    #[schema(ignore)]
    header: Option<Box<(HeaderName, HeaderValue)>>,
}

/// The URN of an error's code.
#[derive(Debug, Clone)]
struct ProblemType(&'static str);

impl Serialize for ProblemType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("urn:keystile:management:{}", self.0))
    }
}

/// A result of the API.
pub(crate) type Answer<T> = Result<T, Problem>;

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: ProblemType(code),
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            detail: detail.into(),
            code,
            field: None,
            request_id: None,
            header: None,
        }
    }

    pub(crate) fn unauthenticated(detail: &str) -> Self {
        let challenge = HeaderValue::from_static("Bearer realm=\"keystile management\"");
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail).with(WWW_AUTHENTICATE, challenge)
    }

    pub(crate) fn forbidden(scope: &str, operation: Operation) -> Self {
        let detail = format!("the scope {scope} does not have {}", operation.name());
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// No such thing, or none that the caller may see: the two are not distinguishable.
    pub(crate) fn not_found(noun: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no such {noun}"))
    }

    pub(crate) fn invalid(field: &str, detail: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail);
        Self { field: Some(field.into()), ..problem }
    }

    /// Of this field or parameter.
    pub(crate) fn of_field(self, field: &str) -> Self {
        Self { field: Some(field.into()), ..self }
    }

    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", detail)
    }

    pub(crate) fn too_many(detail: &str, retry_after: u64) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail)
            .with(RETRY_AFTER, retry_after.into())
    }

    pub(crate) fn unsupported(accepted: &'static str) -> Self {
        let detail = format!("the body is not of the type {accepted}");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
            .with(ACCEPT, HeaderValue::from_static(accepted))
    }

    pub(crate) fn unavailable() -> Self {
        let detail = "the database does not answer at the moment; try again shortly";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail).with(RETRY_AFTER, 1.into())
    }

    pub(crate) fn overloaded() -> Self {
        let detail = "too many keys are created or identified at the moment; try again shortly";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).with(RETRY_AFTER, 5.into())
    }

    /// The database refused a change. Its text may name what the caller may not see.
    pub(crate) fn refused_by_database() -> Self {
        let detail = "the database refuses the change, for example because a value is taken; the log has the reason \
                      under the id of the request";
        Self::new(StatusCode::CONFLICT, "refused", detail)
    }

    fn internal() -> Self {
        let detail = "the request failed; the log has the reason under the id of the request";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// With a header.
    pub(crate) fn with(self, name: HeaderName, value: HeaderValue) -> Self {
        Self { header: Some(Box::new((name, value))), ..self }
    }

    /// The problem of an answer of axum's own: a path or method that there is not.
    pub(crate) fn of_router(answer: &Response) -> Option<Self> {
        match answer.status() {
            StatusCode::NOT_FOUND => Some(Self::new(
                StatusCode::NOT_FOUND,
                "not_found",
                "there is no such path; see /openapi.json",
            )),
            StatusCode::METHOD_NOT_ALLOWED => {
                let detail = "the path has no such method; see /openapi.json";
                let problem = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail);
                let allow = answer.headers().get(ALLOW).cloned();
                Some(Self { header: allow.map(|allow| Box::new((ALLOW, allow))), ..problem })
            }
            _ => None,
        }
    }

    pub(crate) fn code(&self) -> &'static str {
        self.code
    }
}

impl From<PatchError> for Problem {
    fn from(error: PatchError) -> Self {
        match error.field {
            Some(field) => Self::invalid(&field, format!("{field}: {}", error.problem)),
            None => Self::malformed(error.problem),
        }
    }
}

impl From<ManagementError> for Problem {
    fn from(error: ManagementError) -> Self {
        match error {
            ManagementError::Patch(error) => error.into(),
            ManagementError::Store(error) => error.into(),
            ManagementError::VersionMismatch { .. } => {
                Self::new(StatusCode::PRECONDITION_FAILED, "version_mismatch", error.to_string())
            }
            ManagementError::AlreadyDone => Self::in_progress(),
            ManagementError::Refused(reason) => Self::new(StatusCode::CONFLICT, "refused", reason),
        }
    }
}

impl Problem {
    /// Another request with the same idempotency key is in progress.
    pub(crate) fn in_progress() -> Self {
        let detail = "a request with this Idempotency-Key is in progress; try again shortly";
        Self::new(StatusCode::CONFLICT, "in_progress", detail).with(RETRY_AFTER, 1.into())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unfit(_) => {
                error!(%error, "the database refuses a statement");
                Self::internal()
            }
            StoreError::Unavailable(_)
            | StoreError::Timeout(_)
            | StoreError::Busy
            | StoreError::Locked(_)
            | StoreError::Paused(_)
            | StoreError::Abandoned(_) => {
                warn!(%error, "the database does not answer");
                Self::unavailable()
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let header = self.header.clone();
        let mut answer = (status, Json(self.clone())).into_response();
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(header) = header {
            let (name, value) = *header;
            headers.insert(name, value);
        }
        answer.extensions_mut().insert(self);
        answer
    }
}

/// Writes the id of the request into a problem.
pub(crate) fn with_request_id(answer: Response, id: &str) -> Response {
    let Some(problem) = answer.extensions().get::<Problem>().cloned() else { return answer };
    Problem { request_id: Some(id.into()), ..problem }.into_response()
}
