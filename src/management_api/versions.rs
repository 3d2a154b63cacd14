//! Versions of rows, as ETags: in answers, and as the condition `If-Match`.

use axum::{
    Json,
    http::{HeaderMap, HeaderValue, StatusCode, header::ETAG},
    response::{IntoResponse, Response},
};
use serde_json::Value;

use super::problem::{Answer, Problem};
use crate::store::{DisplayRow, RowVersion};

/// An answer with this body, and its version where it is a row.
pub(super) fn with_etag(status: StatusCode, body: Value) -> Response {
    let etag = etag_of(&body);
    let mut answer = (status, Json(body)).into_response();
    answer.headers_mut().extend(etag.map(|etag| (ETAG, etag)));
    answer
}

/// The version that the row must have, by the header `If-Match`.
pub(super) fn if_match(headers: &HeaderMap, row: &DisplayRow) -> Answer<Option<RowVersion>> {
    let mut values = headers.get_all("if-match").iter().peekable();
    if values.peek().is_none() {
        return Ok(None);
    }
    let current = RowVersion::of(row);
    for value in values {
        let text = value.to_str().unwrap_or_default();
        for tag in text.split(',').map(str::trim) {
            if tag == "*" {
                return Ok(None);
            }
            let version = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
            let version = version.and_then(|version| version.parse::<RowVersion>().ok());
            // Of several, the one that the row has now; the change verifies it again.
            if version == Some(current) {
                return Ok(version);
            }
        }
    }
    let detail = format!("If-Match: the version is {current} now; read it again");
    Err(Problem::new(StatusCode::PRECONDITION_FAILED, "version_mismatch", detail).of_field("If-Match"))
}

/// The version of a row as an ETag.
fn etag_of(row: &Value) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("\"{}\"", row["version"].as_str()?)).ok()
}
