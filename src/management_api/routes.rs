//! The routes, and what every request and answer has: an id, a count, and headers.

use std::sync::{Arc, OnceLock};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue,
        header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use data_encoding::HEXLOWER;

use super::{
    Api,
    access::Operation,
    openapi,
    problem::{Problem, with_request_id},
};

/// The id of a request: the caller's own, or a random one. It learns which operation the request is.
#[derive(Clone, Default)]
pub(super) struct RequestId(Arc<Inner>);

#[derive(Default)]
struct Inner {
    text: String,
    operation: OnceLock<Operation>,
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Maximum length of a caller's own id.
const MAX_ID: usize = 128;

/// The routes.
pub(super) fn router(api: Api) -> Router {
    let (routes, document) = openapi::parts();
    let document = Arc::new(document);
    let document = get(move || async move { Json((*document).clone()) });
    routes
        .route("/openapi.json", document)
        .layer(from_fn_with_state(api.clone(), with_headers))
        .with_state(api)
}

async fn with_headers(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let id = RequestId::of(request.headers());
    request.extensions_mut().insert(id.clone());
    let mut answer = next.run(request).await;
    if answer.extensions().get::<Problem>().is_none()
        && let Some(problem) = Problem::of_router(&answer)
    {
        answer = problem.into_response();
    }
    let mut answer = with_request_id(answer, id.text());
    api.count(id.0.operation.get().copied(), answer.status().as_u16());
    let headers = answer.headers_mut();
    // Answers hold secrets, or what only this caller may see.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(id) = HeaderValue::from_str(id.text()) {
        headers.insert(REQUEST_ID, id);
    }
    answer
}

impl RequestId {
    fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        let is_plain = |id: &&str| {
            !id.is_empty() && id.len() <= MAX_ID && id.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let text = match given.filter(is_plain) {
            Some(id) => id.to_owned(),
            None => HEXLOWER.encode(&rand::random::<[u8; 16]>()),
        };
        Self(Arc::new(Inner { text, operation: OnceLock::new() }))
    }

    pub(super) fn text(&self) -> &str {
        &self.0.text
    }

    pub(super) fn set_operation(&self, operation: Operation) {
        let _ = self.0.operation.set(operation);
    }
}
