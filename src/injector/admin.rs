//! Serves the injector's `/livez`, `/readyz` and `/metrics`, and `/ca.crt` where it has its own CA.

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// The routes.
pub(super) fn router(authority: Option<String>, draining: CancellationToken, metrics: Metrics) -> Router {
    let ready = move || {
        if draining.is_cancelled() {
            (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
        } else {
            (StatusCode::OK, "ready\n")
        }
    };
    let exported = move || ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render());
    let routes = Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(async move || ready()))
        .route("/metrics", get(async move || exported()));
    match authority {
        Some(authority) => routes.route("/ca.crt", get(async move || authority)),
        None => routes,
    }
}
