//! Serves the webhook's two paths over HTTP.

use std::{future::poll_fn, pin::Pin, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, HttpBody},
    extract::State,
    http::{
        HeaderMap, StatusCode,
        header::{CONTENT_LENGTH, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
    routing::post,
};
use tokio::{sync::oneshot, time::timeout};
use tracing::{error, info, warn};

use super::{
    admission::Review,
    annotations::Scope,
    patch::{self, Injection},
    pod::InvalidPod,
    sidecar::Sidecar,
};
use crate::{
    bounds::{self, Connections, InFlight, NoRoom, Phase, Slot},
    clock,
    metrics::{InjectorReviews, Metrics},
};

/// Largest body, in bytes: more than the API server accepts for an old and a new object together.
const MAX_BODY: usize = 8 * 1024 * 1024;

/// Deadline of a body. The API server waits at most 30 s for an answer, 10 s by default.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

struct Webhook {
    sidecar: Sidecar,
    reviews: InjectorReviews,
    in_flight: InFlight,
    /// All bodies count as one connection.
    bodies: Slot,
}

/// The routes.
pub(super) fn router(sidecar: Sidecar, in_flight: InFlight, metrics: &Metrics) -> Router {
    let reviews = metrics.injector_reviews();
    let bodies = Connections::new("bodies", 1, Duration::MAX, metrics).open(None);
    let webhook = Arc::new(Webhook { sidecar, reviews, in_flight, bodies });
    let path = |scope| {
        post(async move |State(webhook): State<Arc<Webhook>>, headers: HeaderMap, body: Body| {
            match webhook.receive(body).await {
                Ok(body) => webhook.answer(scope, &headers, &body),
                Err(status) => {
                    webhook.reviews.malformed.increment(1);
                    status.into_response()
                }
            }
        })
    };
    Router::new()
        .route("/mutate", path(Scope::LabelledPods))
        .route("/mutate/enabled-namespace", path(Scope::EnabledNamespace))
        .with_state(webhook)
}

impl Webhook {
    /// Reads the whole body, or returns the status that says why not. The memory of all bodies is bounded.
    async fn receive(&self, body: Body) -> Result<Vec<u8>, StatusCode> {
        let (sender, receiver) = oneshot::channel();
        let work = Box::pin(async move { drop(sender.send(collect(body).await)) });
        tokio::spawn(timeout(BODY_DEADLINE, self.in_flight.track(self.bodies.connection(), work)));
        receiver.await.unwrap_or(Err(StatusCode::REQUEST_TIMEOUT))
    }

    fn answer(&self, scope: Scope, headers: &HeaderMap, body: &[u8]) -> Response {
        let start = clock::monotonic();
        if !is_json(headers) {
            self.reviews.malformed.increment(1);
            return (StatusCode::UNSUPPORTED_MEDIA_TYPE, "send application/json\n").into_response();
        }
        let review = match Review::parse(body) {
            Ok(review) => review,
            Err(error) => {
                self.reviews.malformed.increment(1);
                warn!(%error, length = ?headers.get(CONTENT_LENGTH), "the body is no AdmissionReview");
                return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response();
            }
        };
        let outcome = match review.pod() {
            Some(pod) => patch::review(pod, scope, &self.sidecar),
            None => Ok(Injection::default()),
        };
        self.count(&review, &outcome);
        let answer = match review.answer(&outcome) {
            Ok(answer) => Json(answer).into_response(),
            Err(error) => {
                error!(pod = review.pod_name(), %error, "the answer cannot be written");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        };
        self.reviews.duration.record(start.elapsed().as_secs_f64());
        answer
    }

    fn count(&self, review: &Review, outcome: &Result<Injection, InvalidPod>) {
        let pod = || review.pod_name();
        match outcome {
            Ok(Injection { patch, warnings }) if !patch.is_empty() => {
                self.reviews.injected.increment(1);
                info!(pod = pod(), ?warnings, "injected");
            }
            Ok(Injection { warnings, .. }) => {
                self.reviews.untouched.increment(1);
                if !warnings.is_empty() {
                    info!(pod = pod(), ?warnings, "not injected");
                }
            }
            Err(InvalidPod(message)) => {
                self.reviews.refused.increment(1);
                warn!(pod = pod(), message, "refused");
            }
        }
    }
}

async fn collect(mut body: Body) -> Result<Vec<u8>, StatusCode> {
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(StatusCode::PAYLOAD_TOO_LARGE);
    }
    let mut whole = Vec::new();
    loop {
        let held = whole.capacity();
        bounds::hold(held, Phase::Receiving).map_err(no_room)?;
        let frame = poll_fn(|context| {
            bounds::wait(Pin::new(&mut body).poll_frame(context), Phase::Receiving, || held)
        });
        let Some(frame) = frame.await.map_err(no_room)? else { return Ok(whole) };
        let Ok(data) = frame.map_err(|_| StatusCode::BAD_REQUEST)?.into_data() else { continue };
        if whole.len() + data.len() > MAX_BODY {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        whole.extend_from_slice(&data);
    }
}

fn no_room(_: NoRoom) -> StatusCode {
    StatusCode::SERVICE_UNAVAILABLE
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = value.split(';').next().unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case("application/json")
}
