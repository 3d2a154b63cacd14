//! Envoy's `Check` call, from the gRPC message to the response.
//!
//! One way through: `grpc` receives the message, `request` reads it, the authorizer decides, `outcome` applies the mode,
//! `response` writes what Envoy acts on.

use std::{
    future::{Future, poll_fn},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, Request, Response};
use http_body::Body;
use tonic::Status;
use tracing::{Instrument, Span, debug, debug_span, error, field::Empty};

use crate::{
    attributes::Attributes,
    authorizer::Authorizer,
    bounds::{self, NoRoom, Phase},
    clock::Timestamps,
    decision::Reason,
    dependencies::{Cause, Dependency, Reporter},
    limiter::RateLimiter,
    metrics::{Metrics, RefusedMessages},
    store::KeyStore,
    usage::Usage,
};

mod config;
mod encoded_record;
mod field_filter;
mod grpc;
mod metrics;
mod non_http;
mod outcome;
mod proto;
mod request;
mod response;
mod route_log;

pub use config::{ExtAuthzConfig, RequestConfig};
pub use encoded_record::EncodedRecord;
pub use field_filter::FieldFilter;
pub use grpc::{CHECK_PATH, ResponseBody, message::MAX_MESSAGE_SIZE};
pub use proto::{
    check_request::{CheckRequestView, HttpRequestView},
    reader::MalformedMessage,
};
pub use response::{headers, metadata};

use grpc::{
    drain::BodyDrain,
    message::{Message, ReceiveError, Rejection},
};
use metrics::CheckMetrics;
use non_http::NonHttpLog;
use outcome::Outcome;
use request::ParsedRequest;
use response::{AllowResponses, DenyResponses};
use route_log::RouteLog;

/// Descriptors of the service, for gRPC reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!("ext_authz/descriptor.bin");

/// The gRPC service. Cheap to clone.
pub struct ExtAuthz<S, L>(Arc<Inner<S, L>>);

struct Inner<S, L> {
    authorizer: Authorizer<S, L>,
    usage: Usage,
    config: ExtAuthzConfig,
    metrics: CheckMetrics,
    allows: AllowResponses,
    denials: DenyResponses,
    non_http: NonHttpLog,
    body_drain: BodyDrain,
    route_log: RouteLog,
    reporter: Reporter,
}

impl<S: KeyStore<EncodedRecord>, L: RateLimiter> ExtAuthz<S, L> {
    /// Decides by `authorizer`, and counts admitted requests in `usage`.
    pub fn new(
        authorizer: Authorizer<S, L>,
        usage: Usage,
        config: ExtAuthzConfig,
        metrics: &Metrics,
    ) -> Self {
        Self(Arc::new(Inner {
            authorizer,
            usage,
            metrics: CheckMetrics::new(metrics),
            allows: AllowResponses::new(&config, metrics),
            denials: DenyResponses::new(&config),
            non_http: NonHttpLog::default(),
            body_drain: BodyDrain::new(),
            route_log: RouteLog::default(),
            reporter: metrics.reporter(Dependency::Memory),
            config,
        }))
    }

    /// Handles one gRPC call. A fault of the call itself is its gRPC status.
    pub async fn call<B>(&self, request: Request<B>) -> Response<ResponseBody>
    where
        B: Body<Data = Bytes, Error: std::fmt::Display + Send> + Unpin + Send + 'static,
    {
        let (parts, body) = request.into_parts();
        let headers = &parts.headers;
        let received = grpc::message::receive(body, headers, || self.0.allowed_time(headers)).await;
        grpc::response(match received {
            Ok(message) => self.check_in_bounds(headers, &message).await,
            Err(ReceiveError::Rejected(rejection, body)) => {
                self.0.body_drain.drain(body);
                Ok(self.0.reject(rejection))
            }
            Err(ReceiveError::Broken(status)) => Err(status),
        })
    }

    /// Turns one `CheckRequest` into a `CheckResponse`, framed for gRPC. A panic on the way is a denial of this request
    /// alone, in every mode.
    ///
    /// # Errors
    /// The gRPC status where Envoy's failure mode decides.
    pub async fn check(&self, headers: &HeaderMap, message: &[u8]) -> Result<Bytes, Status> {
        self.check_after(headers, message, Duration::ZERO).await
    }

    /// Checks a message. A check that has to wait may have to make room for others.
    async fn check_in_bounds(&self, headers: &HeaderMap, message: &Message) -> Result<Bytes, Status> {
        let mut check = std::pin::pin!(self.check_after(headers, &message.bytes, message.waited));
        let mut has_waited = false;
        let checked = poll_fn(|context| {
            let polled = check.as_mut().poll(context);
            has_waited |= polled.is_pending();
            bounds::wait(polled, Phase::Deciding, || grpc::message::size(headers) + message.bytes.len())
        })
        .await;
        if has_waited {
            bounds::answered();
        }
        checked.unwrap_or_else(|NoRoom| Ok(self.0.reject(Rejection::NoRoom)))
    }

    /// Checks a message that took `waited` to arrive, which is part of the time that its check may take.
    async fn check_after(
        &self,
        headers: &HeaderMap,
        message: &[u8],
        waited: Duration,
    ) -> Result<Bytes, Status> {
        let handled = AssertUnwindSafe(self.0.handle(headers, message, waited)).catch_unwind().await;
        handled.unwrap_or_else(|_| {
            error!("a check panicked and was denied");
            Ok(self.0.deny_unread(Reason::Unavailable))
        })
    }
}

impl<S, L> Clone for ExtAuthz<S, L> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: KeyStore<EncodedRecord>, L: RateLimiter> Inner<S, L> {
    async fn handle(&self, headers: &HeaderMap, message: &[u8], waited: Duration) -> Result<Bytes, Status> {
        let now = Timestamps::now();
        let deadline = now.monotonic + self.allowed_time(headers).saturating_sub(waited);
        let request = match ParsedRequest::read(message, headers, &self.config.request) {
            Ok(request) => request,
            Err(error) => return Ok(self.deny_malformed(&error.to_string())),
        };
        let attributes = &request.attributes;
        let span = check_span(attributes);
        let check = || self.authorizer.check(attributes, now, deadline);
        // Boxed only where it is logged: otherwise a span would enlarge every check.
        let decision =
            if span.is_disabled() { check().await } else { Box::pin(check().instrument(span.clone())).await };
        let route_shadow = attributes.route.as_ref().ok().and_then(|route| route.shadow);
        let outcome = Outcome::new(decision, route_shadow, self.config.mode, self.config.on_failure);
        if let Outcome::Allow(admission) = &outcome
            && let Some(proven) = admission.proven()
        {
            self.usage.count(proven.record().id, attributes.stream_id, now.wall);
        }
        self.metrics.count(&outcome, now.monotonic.elapsed());
        self.log(&span, &outcome, attributes, now.monotonic);
        match &outcome {
            Outcome::Allow(admission) => Ok(self.allows.write(admission, &request)),
            Outcome::Deny(denial) => {
                if denial.reason == Reason::NotHttp {
                    self.non_http.note(message, attributes.client, now.monotonic);
                }
                Ok(self.denials.write(denial, &request))
            }
            // Envoy takes a gRPC error with any code for a failure of the service.
            Outcome::Defer(denial) => Err(Status::unavailable(denial.reason.code())),
        }
    }

    fn log(&self, span: &Span, outcome: &Outcome, attributes: &Attributes<'_>, now: Instant) {
        if let Err(error) = &attributes.route {
            span.in_scope(|| self.route_log.record(&error.to_string(), attributes.path, now));
        }
        if span.is_disabled() {
            return;
        }
        if let Some(proven) = outcome.proven() {
            span.record("key_id", proven.record().id.0);
            span.record("tier", proven.tier.name());
        }
        span.record("result", outcome.result());
        span.in_scope(|| debug!("checked"));
    }

    /// The shorter of the check's own time and of Envoy's, less a tenth for the way back.
    fn allowed_time(&self, headers: &HeaderMap) -> Duration {
        let timeout = self.config.timeout;
        grpc::timeout(headers).map_or(timeout, |envoys| timeout.min(envoys - envoys / 10))
    }

    /// Denies a request that is not received whole, in every mode.
    fn reject(&self, rejection: Rejection) -> Bytes {
        let RefusedMessages { too_large, no_room, late } = &self.metrics.refused;
        match rejection {
            Rejection::TooLarge => {
                too_large.increment(1);
                self.deny_malformed("too large")
            }
            Rejection::NoRoom => {
                no_room.increment(1);
                let problem =
                    "messages were refused, because waiting requests hold all memory that they may have";
                self.reporter.fails_for(1, Cause::NoRoom, problem);
                self.deny_unread(Reason::Overloaded)
            }
            Rejection::Late => {
                late.increment(1);
                let problem = "messages from Envoy were not complete at their deadline";
                self.reporter.fails_for(1, Cause::LateMessages, problem);
                self.deny_unread(Reason::Overloaded)
            }
        }
    }

    /// Denies a request that cannot be read, in every mode. Never by a gRPC error, which Envoy's failure mode may let
    /// through: a client may have written what cannot be read.
    fn deny_malformed(&self, why: &str) -> Bytes {
        debug!(why, "a check cannot be read and was denied");
        self.deny_unread(Reason::MalformedRequest)
    }

    /// Denies a request of which nothing is known.
    fn deny_unread(&self, reason: Reason) -> Bytes {
        self.metrics.count_denied(reason);
        self.denials.write_unread(reason)
    }
}

/// The span of one check, at level `debug`: lines of every step are logged in it. The last fields are known at its end.
fn check_span(attributes: &Attributes<'_>) -> Span {
    debug_span!(
        "check",
        request_id = attributes.printable_request_id(),
        method = attributes.method,
        path = attributes.path,
        key_id = Empty,
        tier = Empty,
        result = Empty,
    )
}

#[cfg(test)]
mod tests;
