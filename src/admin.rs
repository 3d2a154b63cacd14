//! The admin listener: `/livez`, `/readyz`, `/metrics` and `/stats` over HTTP, for operators only.

use axum::{
    Json, Router,
    extract::State as Extract,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{health::Health, metrics::Metrics, revocation::FeedState, tls::Tls};

mod stats;

pub use stats::Stats;

/// The listeners with TLS, whose certificates `/readyz` shows.
#[derive(Clone)]
pub struct TlsStates {
    /// The gRPC listeners on TCP.
    pub grpc: Option<Tls>,
    /// The admin listener.
    pub admin: Option<Tls>,
}

/// The routes.
pub fn router(
    health: Health,
    metrics: Metrics,
    stats: Stats,
    feed: watch::Receiver<FeedState>,
    tls: TlsStates,
) -> Router {
    let has_redis = stats.has_redis();
    Router::new()
        .route("/livez", get(live))
        .route(
            "/readyz",
            get(move |health| ready(health, has_redis, feed.clone(), tls.clone())).with_state(health),
        )
        .route("/metrics", get(metrics_text).with_state(metrics))
        .route("/stats", get(stats_json).with_state(stats))
}

/// The process runs. It does not ask the database, which no restart would repair.
async fn live() -> impl IntoResponse {
    Json(json!({ "status": "alive" }))
}

/// Whether Envoy should send checks to this instance, and the problems of its dependencies.
async fn ready(
    Extract(health): Extract<Health>,
    has_redis: bool,
    feed: watch::Receiver<FeedState>,
    tls: TlsStates,
) -> impl IntoResponse {
    let state = health.state();
    let status = if state.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let dependency = |problem: &Option<String>, up: bool| match problem {
        Some(problem) => json!({ "up": false, "problem": problem }),
        None => json!({ "up": up }),
    };
    let mut readiness = json!({
        "status": state.name(),
        "database": dependency(&state.database, state.is_ready()),
        "change_feed": feed.borrow().clone(),
    });
    if has_redis {
        readiness["redis"] = dependency(&state.redis, true);
    }
    for (listener, tls) in [("grpc", tls.grpc), ("admin", tls.admin)] {
        if let Some(tls) = tls {
            readiness["tls"][listener] = json!(tls.state());
        }
    }
    (status, Json(readiness))
}

async fn metrics_text(Extract(metrics): Extract<Metrics>) -> impl IntoResponse {
    // The text format of Prometheus, version 0.0.4.
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
}

async fn stats_json(Extract(stats): Extract<Stats>) -> Json<Value> {
    Json(stats.to_json().await)
}
