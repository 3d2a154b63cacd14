//! The webhook's two paths over HTTP.

use std::{sync::Arc, time::Instant};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{
        HeaderMap, StatusCode,
        header::{CONTENT_LENGTH, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
    routing::post,
};
use tracing::{info, warn};

use super::{
    admission::Review,
    asked::Scope,
    patch::{self, Injection, Refused, Sidecar},
};
use crate::metrics::{InjectorReviews, Metrics};

/// More than the API server takes for a whole object, old and new.
const MAX_BODY: usize = 8 * 1024 * 1024;

struct Webhook {
    sidecar: Sidecar,
    reviews: InjectorReviews,
}

/// The routes.
pub(super) fn router(sidecar: Sidecar, metrics: &Metrics) -> Router {
    let webhook = Arc::new(Webhook { sidecar, reviews: metrics.injector_reviews() });
    let path = |scope| {
        post(async move |State(webhook): State<Arc<Webhook>>, headers: HeaderMap, body: Bytes| {
            webhook.answer(scope, &headers, &body)
        })
    };
    Router::new()
        .route("/mutate", path(Scope::LabelledPods))
        .route("/mutate/enabled-namespace", path(Scope::EnabledNamespace))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(webhook)
}

impl Webhook {
    fn answer(&self, scope: Scope, headers: &HeaderMap, body: &[u8]) -> Response {
        let start = Instant::now();
        if !is_json(headers) {
            self.reviews.malformed.increment(1);
            return (StatusCode::UNSUPPORTED_MEDIA_TYPE, "send application/json\n").into_response();
        }
        let review = match Review::parse(body) {
            Ok(review) => review,
            Err(error) => {
                self.reviews.malformed.increment(1);
                warn!(%error, length = ?headers.get(CONTENT_LENGTH), "not a question of an API server");
                return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response();
            }
        };
        let outcome = match review.pod() {
            Some(pod) => patch::review(pod, scope, &self.sidecar),
            None => Ok(Injection::default()),
        };
        self.count(&review, &outcome);
        let answer = Json(review.answer(&outcome)).into_response();
        self.reviews.duration.record(start.elapsed().as_secs_f64());
        answer
    }

    fn count(&self, review: &Review, outcome: &Result<Injection, Refused>) {
        let pod = || review.pod_name();
        match outcome {
            Ok(Injection { patch, warnings }) if !patch.is_empty() => {
                self.reviews.injected.increment(1);
                info!(pod = pod(), ?warnings, "injected");
            }
            Ok(Injection { warnings, .. }) => {
                self.reviews.untouched.increment(1);
                if !warnings.is_empty() {
                    info!(pod = pod(), ?warnings, "left alone");
                }
            }
            Err(Refused(message)) => {
                self.reviews.refused.increment(1);
                warn!(pod = pod(), message, "refused");
            }
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = value.split(';').next().unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case("application/json")
}
