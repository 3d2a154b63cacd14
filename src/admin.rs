//! The admin listener: `/livez`, `/readyz` and `/metrics` over HTTP, for operators only.

use axum::{
    Json, Router,
    extract::State as Extract,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use serde_json::json;

use crate::{health::Health, metrics::Metrics};

/// The routes.
pub fn router(health: Health, metrics: Metrics) -> Router {
    Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready).with_state(health))
        .route("/metrics", get(exported).with_state(metrics))
}

/// The process runs. That is all: a restart mends nothing about a database.
async fn live() -> impl IntoResponse {
    Json(json!({ "status": "alive" }))
}

/// Whether Envoy should send checks here, and what is wrong.
async fn ready(Extract(health): Extract<Health>) -> impl IntoResponse {
    let state = health.state();
    let status = if state.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let database = match (state.problem(), state.is_ready()) {
        (Some(problem), _) => json!({ "up": false, "problem": problem }),
        (None, up) => json!({ "up": up }),
    };
    (status, Json(json!({ "status": state.name(), "database": database })))
}

async fn exported(Extract(metrics): Extract<Metrics>) -> impl IntoResponse {
    // The text format of Prometheus, version 0.0.4.
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
}
