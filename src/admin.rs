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

use crate::{
    dependencies::{Dependency, DependencyState, State},
    health::Health,
    metrics::Metrics,
    revocation::FeedState,
    tls::Tls,
};

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
    let (has_redis, states) = (stats.has_redis(), metrics.clone());
    Router::new()
        .route("/livez", get(live))
        .route(
            "/readyz",
            get(move |health| ready(health, has_redis, feed.clone(), states.clone(), tls.clone()))
                .with_state(health),
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
    metrics: Metrics,
    tls: TlsStates,
) -> impl IntoResponse {
    let (phase, states) = (health.phase(), metrics.states().snapshot());
    let status = if phase.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let has_fault = states.iter().any(|state| state.state != State::Up);
    let problem = |of: &[Dependency]| {
        let mut faults =
            states.iter().filter(|state| of.contains(&state.dependency) && state.state == State::Down);
        faults.find_map(|state| state.faults.first()).map(|fault| fault.problem.clone())
    };
    let summary = |problem: Option<String>, up: bool| match problem {
        Some(problem) => json!({ "up": false, "problem": problem }),
        None => json!({ "up": up }),
    };
    let mut readiness = json!({
        "status": phase.name(has_fault),
        "database": summary(problem(&[Dependency::Database, Dependency::Budgets]), phase.is_ready()),
        "change_feed": feed.borrow().clone(),
        "dependencies": dependencies_to_json(&states),
    });
    if has_redis {
        readiness["redis"] = summary(problem(&[Dependency::RedisCache]), true);
    }
    for (listener, tls) in [("grpc", tls.grpc), ("admin", tls.admin)] {
        if let Some(tls) = tls {
            readiness["tls"][listener] = json!(tls.state());
        }
    }
    (status, Json(readiness))
}

/// Each dependency that was used, with the cause and the fix of what does not work.
fn dependencies_to_json(states: &[DependencyState]) -> Value {
    let states = states.iter().map(|state| {
        let name = match state.state {
            State::Up => "up",
            State::Degraded => "degraded",
            State::Down => "down",
        };
        let mut json = json!({ "state": name });
        let faults = state.faults.iter();
        let faults: Vec<_> = faults
            .map(|fault| json!({ "cause": fault.cause, "problem": fault.problem, "fix": fault.fix }))
            .collect();
        if !faults.is_empty() {
            json["faults"] = faults.into();
            json["consequence"] = state.dependency.consequence().into();
        }
        if state.failed_calls > 0 {
            json["failed_calls"] = state.failed_calls.into();
        }
        (state.dependency.name().to_owned(), json)
    });
    Value::Object(states.collect())
}

async fn metrics_text(Extract(metrics): Extract<Metrics>) -> impl IntoResponse {
    // The text format of Prometheus, version 0.0.4.
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
}

async fn stats_json(Extract(stats): Extract<Stats>) -> Json<Value> {
    Json(stats.to_json().await)
}
