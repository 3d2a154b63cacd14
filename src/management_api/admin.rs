//! Serves `/livez`, `/readyz` and `/metrics` of the management API.

use axum::{
    Json, Router,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{metrics::Metrics, store::Database, tls::Tls};

/// The routes.
pub(super) fn router(
    database: Database,
    tls: Option<Tls>,
    draining: CancellationToken,
    metrics: Metrics,
) -> Router {
    let ready = async move || {
        let problem = database.ping().await.err().map(|error| error.to_string());
        let (status, state) = if draining.is_cancelled() {
            (StatusCode::SERVICE_UNAVAILABLE, "draining")
        } else if problem.is_some() {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready")
        } else {
            (StatusCode::OK, "ready")
        };
        let mut readiness = json!({ "status": state, "database": { "up": problem.is_none() } });
        if let Some(problem) = problem {
            readiness["database"]["problem"] = problem.into();
        }
        if let Some(tls) = &tls {
            readiness["tls"]["management"] = json!(tls.state());
        }
        (status, Json(readiness))
    };
    let exported = move || {
        metrics.upkeep();
        ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
    };
    Router::new()
        .route("/livez", get(async || Json(json!({ "status": "alive" }))))
        .route("/readyz", get(ready))
        .route("/metrics", get(async move || exported()))
}
