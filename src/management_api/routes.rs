//! The routes, and what every request and answer has: an id, a count, and headers.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{
        HeaderValue,
        header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};

use tracing::{Instrument, info_span};

use super::{
    api::Api,
    openapi,
    problem::{Problem, with_request_id},
    request_id::{REQUEST_ID, RequestId},
};

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
    let span = info_span!("request", request_id = id.text());
    let mut answer = next.run(request).instrument(span).await;
    if answer.extensions().get::<Problem>().is_none()
        && let Some(problem) = Problem::of_router(&answer)
    {
        answer = problem.into_response();
    }
    let mut answer = with_request_id(answer, id.text());
    api.count(id.operation(), answer.status().as_u16());
    let headers = answer.headers_mut();
    // Answers hold secrets, or what only this caller may see.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(id) = HeaderValue::from_str(id.text()) {
        headers.insert(REQUEST_ID, id);
    }
    answer
}
