//! Envoy's `Check` call: a request becomes attributes, a decision becomes an answer.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use bytes::Bytes;
use envoy_types::ext_authz::v3::pb::CheckResponse;
use futures_util::FutureExt;
use http::HeaderMap;
use http_body::Body;
use http_body_util::BodyExt;
use prost::Message;
use tokio::sync::Semaphore;
use tonic::Status;
use tracing::{debug, error, warn};

use crate::{
    attributes::Attributes,
    authorizer::Authorizer,
    clock::Timestamps,
    config::{DenyFormat, Mode, OnFailure, RateLimitFields},
    decision::{Denial, Permit, Proven, Reason},
    limiter::RateLimiter,
    metrics::{Metrics, RefusedMessages as Refused},
    store::KeyStore,
    usage::Usage,
};

mod chosen;
mod client_headers;
mod counted;
mod counts;
pub mod headers;
mod message;
pub mod metadata;
mod rendered;
mod request;
mod response;
mod rows;
mod service;
mod truncation;
mod wire;

pub use chosen::Chosen;
use counts::Counts;
use headers::Told;
use message::Refusal;
use metadata::Said;
pub use request::Reading;
use request::{Parsed, Strip};
use rows::Rows;
pub use service::{Answer, CHECK_PATH};
use truncation::Truncation;
pub use wire::{Check, Http, Malformed};

/// Descriptors of the service, for gRPC reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!("ext_authz/descriptor.bin");

/// Largest `CheckRequest` that is read, in bytes: far above what Envoy is told to buffer.
pub const MAX_MESSAGE_SIZE: usize = 16 * 1024 * 1024;

/// Bodies of answered calls that are read to their end at a time, and for how long.
const DISCARDS: usize = 1024;
const DISCARD: Duration = Duration::from_secs(1);

/// The gRPC service. Cheap to clone.
pub struct ExtAuthz<S, L>(Arc<Inner<S, L>>);

/// What [`ExtAuthz`] needs to be told.
#[derive(Debug, Clone)]
pub struct ExtAuthzConfig {
    /// How requests are read.
    pub reading: Reading,
    /// Whether the credential goes on to the upstream.
    pub forward_credential: bool,
    /// Deadline of a check, when Envoy's own is not earlier.
    pub timeout: Duration,
    /// What an unavailable store becomes.
    pub on_failure: OnFailure,
    /// Whether denials are enforced where the route says nothing.
    pub mode: Mode,
    /// Form of a denial's body.
    pub deny_format: DenyFormat,
    /// Which further fields tell clients of their limits.
    pub rate_limit_fields: RateLimitFields,
    /// Which headers are sent to the upstream.
    pub upstream_headers: Chosen,
    /// What Envoy is told.
    pub metadata: Chosen,
}

struct Inner<S, L> {
    authorizer: Authorizer<S, L>,
    usage: Usage,
    config: ExtAuthzConfig,
    counts: Counts,
    truncation: Truncation,
    discards: Arc<Semaphore>,
}

/// What becomes of a request.
enum Decision {
    Allow(Permit),
    Deny(Denial),
    /// Let through, and reported as the denial that it would have been.
    Shadow(Denial),
    /// Handed to Envoy's failure mode.
    Defer(Denial),
}

impl<S: KeyStore, L: RateLimiter> ExtAuthz<S, L> {
    /// Answers by `authorizer`; what is let through is counted in `usage`.
    pub fn new(
        authorizer: Authorizer<S, L>,
        usage: Usage,
        config: ExtAuthzConfig,
        metrics: &Metrics,
    ) -> Self {
        let discards = Arc::new(Semaphore::new(DISCARDS));
        let (counts, truncation) = (Counts::new(metrics), Truncation::new(metrics));
        Self(Arc::new(Inner { authorizer, usage, config, counts, truncation, discards }))
    }
}

impl<S, L> Clone for ExtAuthz<S, L> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: KeyStore, L: RateLimiter> ExtAuthz<S, L> {
    /// Answers one `CheckRequest` by an encoded `CheckResponse`, framed as gRPC has it. A panic anywhere on the
    /// way is a denial of this request alone, whatever the mode.
    ///
    /// # Errors
    /// The gRPC status where the decision is left to Envoy.
    pub async fn answer(&self, metadata: &HeaderMap, message: &[u8]) -> Result<Bytes, Status> {
        self.answer_late(metadata, message, Duration::ZERO).await
    }

    /// The same for a message that was `waited` for, which is part of the time that its check may take.
    async fn answer_late(
        &self,
        metadata: &HeaderMap,
        message: &[u8],
        waited: Duration,
    ) -> Result<Bytes, Status> {
        let handled = AssertUnwindSafe(self.0.handle(metadata, message, waited)).catch_unwind().await;
        handled.unwrap_or_else(|_| {
            error!("a check panicked and was denied");
            Ok(self.0.deny(Reason::Unavailable))
        })
    }
}

impl<S: KeyStore, L: RateLimiter> Inner<S, L> {
    async fn handle(&self, metadata: &HeaderMap, message: &[u8], waited: Duration) -> Result<Bytes, Status> {
        let now = Timestamps::now();
        let deadline = now.monotonic + self.allowed_time(metadata).saturating_sub(waited);
        let parsed = match Parsed::read(message, metadata, &self.config.reading) {
            Ok(parsed) => parsed,
            Err(error) => return Ok(self.deny_unread(&error.to_string())),
        };
        let checked = self.authorizer.check(&parsed.attributes, now, deadline).await;
        let decision = self.decide(checked, &parsed.attributes);
        if let Some(proven) = decision.lets_through() {
            self.usage.count(proven.record.id, parsed.attributes.stream_id, now.wall);
        }
        self.counts.count(&decision, now.monotonic.elapsed());
        log(&decision, &parsed.attributes);
        self.answer(&decision, parsed)
    }

    /// Denies a request that cannot be read, whatever the mode. Never by a gRPC error, which Envoy's failure mode
    /// may let through: it is the client who writes what cannot be read.
    fn deny_unread(&self, why: &str) -> Bytes {
        debug!(why, "a check cannot be read and was denied");
        self.deny(Reason::MalformedRequest)
    }

    /// Denies a request that is not received whole, likewise whatever the mode.
    fn refuse(&self, refusal: Refusal) -> Bytes {
        let Refused { too_large, no_room, late } = &self.counts.refused;
        match refusal {
            Refusal::TooLarge => {
                too_large.increment(1);
                self.deny_unread("too large")
            }
            Refusal::NoRoom => {
                no_room.increment(1);
                self.deny(Reason::Overloaded)
            }
            Refusal::Late => {
                late.increment(1);
                self.deny(Reason::Overloaded)
            }
        }
    }

    /// Reads what is left of the body of a call that is answered already. A stream that is reset instead may end in
    /// Envoy before the answer is heard, and after a thousand of them the HTTP/2 library ends the connection.
    fn discard<B: Body<Data = Bytes> + Unpin + Send + 'static>(&self, mut body: B) {
        let Ok(place) = Arc::clone(&self.discards).try_acquire_owned() else { return };
        tokio::spawn(async move {
            let rest = async { while let Some(Ok(_)) = body.frame().await {} };
            // Past it, the peer does not mean to end.
            let _ = tokio::time::timeout(DISCARD, rest).await;
            drop(place);
        });
    }

    /// The check's own time, or what Envoy leaves less a tenth for the way back, whichever is shorter.
    fn allowed_time(&self, metadata: &HeaderMap) -> Duration {
        let envoys = metadata.get("grpc-timeout").and_then(|value| grpc_timeout(value.to_str().ok()?));
        let timeout = self.config.timeout;
        envoys.map_or(timeout, |envoys| timeout.min(envoys - envoys / 10))
    }

    /// Denies a request of which nothing is known.
    fn deny(&self, reason: Reason) -> Bytes {
        self.counts.denied(reason);
        encoded(&response::deny_unknown(reason, self.config.deny_format))
    }

    fn decide(&self, checked: Result<Permit, Denial>, attributes: &Attributes<'_>) -> Decision {
        let denial = match checked {
            Ok(permit) => return Decision::Allow(permit),
            Err(denial) => denial,
        };
        let route = attributes.route.as_ref().ok().and_then(|route| route.shadow);
        if denial.is_shadowed(route, self.config.mode == Mode::Shadow) {
            return Decision::Shadow(denial);
        }
        // Only what no caller can bring about is handed to Envoy's failure mode; and not a proven key whose
        // limits nobody counts, which is denied because the operator said so.
        let is_failure = denial.reason == Reason::Unavailable && denial.proven.is_none();
        match self.config.on_failure == OnFailure::Defer && is_failure {
            true => Decision::Defer(denial),
            false => Decision::Deny(denial),
        }
    }

    fn answer(&self, decision: &Decision, parsed: Parsed<'_>) -> Result<Bytes, Status> {
        let config = &self.config;
        let Parsed { attributes, strip, copies } = parsed;
        let strip = if config.forward_credential { Strip::default() } else { strip };
        if let Decision::Allow(Permit::Key(proven)) = decision
            && rendered::is_usual(proven, &copies)
        {
            return Ok(rendered::allow(proven, &strip, &copies, config, &self.truncation));
        }
        let said = Said {
            decision: if matches!(decision, Decision::Deny(_)) { "deny" } else { "allow" },
            result: decision.result(),
            reason: decision.reason(),
            proven: decision.proven(),
            route_error: attributes.route.as_ref().err(),
        };
        match decision {
            Decision::Allow(_) | Decision::Shadow(_) => {
                let record = said.proven.map(|proven| &*proven.record);
                let standing = said.proven.and_then(|proven| proven.standing.as_ref());
                let told = Told { result: said.result, record, standing };
                let metadata = said.to_struct(Rows::All, &config.metadata);
                Ok(encoded(&response::allow(told, metadata, &strip, &copies, config, &self.truncation)))
            }
            Decision::Deny(denial) => {
                let metadata = said.to_struct(Rows::All, &config.metadata);
                Ok(encoded(&response::deny(denial, metadata, &attributes, config)))
            }
            // Envoy takes any gRPC error for a failure of the service, whatever its code.
            Decision::Defer(denial) => Err(Status::unavailable(denial.reason.code())),
        }
    }
}

/// An answer as gRPC sends it.
fn encoded(answer: &CheckResponse) -> Bytes {
    service::framed(answer.encoded_len(), |message| {
        // A vector grows as it must.
        let _ = answer.encode(message);
    })
}

impl Decision {
    /// How it went, in a word.
    fn result(&self) -> &'static str {
        match self {
            Self::Allow(Permit::Key(_)) => "allow",
            Self::Allow(Permit::Anonymous) => "anonymous",
            Self::Deny(denial) | Self::Shadow(denial) | Self::Defer(denial) => denial.reason.code(),
        }
    }

    fn reason(&self) -> Option<Reason> {
        match self {
            Self::Allow(_) => None,
            Self::Deny(denial) | Self::Shadow(denial) | Self::Defer(denial) => Some(denial.reason),
        }
    }

    /// The key as which the request goes on to the upstream.
    fn lets_through(&self) -> Option<&Proven> {
        match self {
            Self::Allow(_) | Self::Shadow(_) => self.proven(),
            Self::Deny(_) | Self::Defer(_) => None,
        }
    }

    fn proven(&self) -> Option<&Proven> {
        match self {
            Self::Allow(Permit::Key(proven)) => Some(proven),
            Self::Allow(Permit::Anonymous) => None,
            Self::Deny(denial) | Self::Shadow(denial) | Self::Defer(denial) => denial.proven.as_ref(),
        }
    }
}

/// Reads `TimeoutValue TimeoutUnit` of gRPC over HTTP/2: at most eight digits and one letter.
fn grpc_timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 60 * 60)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

fn log(decision: &Decision, attributes: &Attributes<'_>) {
    if let Err(error) = &attributes.route {
        warn!(%error, path = attributes.path, "a route is misconfigured in Envoy");
    }
    let proven = decision.proven();
    debug!(
        result = decision.result(),
        key_id = proven.map(|proven| proven.record.id.0),
        tier = proven.map(|proven| proven.tier.name()),
        request_id = attributes.printable_request_id(),
        method = attributes.method,
        path = attributes.path,
        "checked"
    );
}

#[cfg(test)]
mod tests;
