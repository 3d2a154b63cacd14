//! Envoy's `Check` call: a request becomes attributes, a decision becomes an answer.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use envoy_types::ext_authz::v3::pb::{Authorization, CheckRequest, CheckResponse};
use futures_util::FutureExt;
use metrics::{Counter, Histogram};
use tonic::{Request, Response, Status, metadata::MetadataMap};
use tracing::{debug, error};

use crate::{
    authorizer::Authorizer,
    config::{CredentialSource, OnFailure},
    decision::{Denial, Permit, Reason, Tier},
    metrics::Metrics,
    moment::Moment,
    store::KeyStore,
};

pub mod headers;
mod metadata;
mod request;
mod response;

use request::Parsed;

/// Descriptors of the service, for gRPC reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!("ext_authz/descriptor.bin");

/// Largest `CheckRequest` that is read, in bytes: far above what Envoy is told to buffer.
pub const MAX_MESSAGE_SIZE: usize = 16 * 1024 * 1024;

/// The gRPC service.
pub struct ExtAuthz<S> {
    authorizer: Arc<Authorizer<S>>,
    config: ExtAuthzConfig,
    counts: Arc<Counts>,
}

/// What [`ExtAuthz`] needs to be told.
#[derive(Debug, Clone)]
pub struct ExtAuthzConfig {
    /// Where credentials are looked for.
    pub credential_sources: Vec<CredentialSource>,
    /// Whether the credential goes on to the upstream.
    pub forward_credential: bool,
    /// Deadline of a check, when Envoy's own is not earlier.
    pub timeout: Duration,
    /// What an unavailable store becomes.
    pub on_failure: OnFailure,
}

impl<S: KeyStore> ExtAuthz<S> {
    /// Answers by `authorizer`.
    pub fn new(authorizer: Authorizer<S>, config: ExtAuthzConfig, metrics: &Metrics) -> Self {
        Self { authorizer: Arc::new(authorizer), config, counts: Arc::new(Counts::new(metrics)) }
    }

    /// Decides; a panic on the way is a denial of this request alone.
    async fn decide(&self, parsed: &Parsed, now: Moment, deadline: Instant) -> Decision {
        let check = self.authorizer.check(&parsed.attributes, now, deadline);
        match AssertUnwindSafe(check).catch_unwind().await {
            Ok(Ok(permit)) => Decision::Allow(permit),
            // Only what no caller can bring about is handed to Envoy's failure mode.
            Ok(Err(denial)) if self.defers(denial.reason) => Decision::Defer(denial),
            Ok(Err(denial)) => Decision::Deny(denial),
            Err(_) => {
                error!(request_id = parsed.attributes.request_id, "a check panicked and was denied");
                Decision::Deny(Reason::Unavailable.into())
            }
        }
    }

    fn defers(&self, reason: Reason) -> bool {
        self.config.on_failure == OnFailure::Defer && reason == Reason::Unavailable
    }
}

enum Decision {
    Allow(Permit),
    Deny(Denial),
    Defer(Denial),
}

impl<S> Clone for ExtAuthz<S> {
    fn clone(&self) -> Self {
        Self {
            authorizer: Arc::clone(&self.authorizer),
            config: self.config.clone(),
            counts: Arc::clone(&self.counts),
        }
    }
}

#[tonic::async_trait]
impl<S: KeyStore> Authorization for ExtAuthz<S> {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let now = Moment::now();
        let deadline = now.monotonic + allowed_time(request.metadata(), self.config.timeout);
        let parsed = Parsed::new(request.get_ref(), &self.config.credential_sources);
        let decision = self.decide(&parsed, now, deadline).await;
        self.counts.count(&decision, now.monotonic.elapsed());
        log(&decision, &parsed);
        match decision {
            Decision::Allow(permit) => {
                let strip = (!self.config.forward_credential).then_some(parsed.strip);
                Ok(Response::new(response::allow(&permit, strip.unwrap_or_default())))
            }
            Decision::Deny(denial) => Ok(Response::new(response::deny(&denial, &parsed.attributes))),
            // Envoy takes any gRPC error for a failure of the service, whatever its code.
            Decision::Defer(denial) => Err(Status::unavailable(denial.reason.code())),
        }
    }
}

/// The check's own time, or what Envoy leaves less a tenth for the way back, whichever is shorter.
fn allowed_time(metadata: &MetadataMap, timeout: Duration) -> Duration {
    let envoys = metadata.get("grpc-timeout").and_then(|value| grpc_timeout(value.to_str().ok()?));
    envoys.map_or(timeout, |envoys| timeout.min(envoys - envoys / 10))
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

fn log(decision: &Decision, parsed: &Parsed) {
    let (name, reason, permit) = decision.parts();
    let attributes = &parsed.attributes;
    debug!(
        decision = name,
        reason = reason.map(Reason::code),
        key_id = permit.map(|permit| permit.record.id.0),
        tier = permit.map(|permit| permit.tier.name()),
        request_id = attributes.request_id,
        method = attributes.method,
        path = attributes.path,
        "checked"
    );
}

impl Decision {
    /// Its name, the reason if it is no permit, and the key if one was proven.
    fn parts(&self) -> (&'static str, Option<Reason>, Option<&Permit>) {
        match self {
            Self::Allow(permit) => ("allow", None, Some(permit)),
            Self::Deny(denial) => ("deny", Some(denial.reason), denial.proven.as_ref()),
            Self::Defer(denial) => ("error", Some(denial.reason), denial.proven.as_ref()),
        }
    }
}

/// Handles of what is counted for each check.
struct Counts {
    allowed: Counter,
    denied: Vec<(Reason, Counter)>,
    deferred: Counter,
    durations: [(Option<Tier>, Histogram); 3],
}

impl Counts {
    fn new(metrics: &Metrics) -> Self {
        let denied = |reason: Reason| (reason, metrics.checks("deny", reason.code()));
        let duration = |tier: Option<Tier>| (tier, metrics.check_duration(tier.map_or("none", Tier::name)));
        Self {
            allowed: metrics.checks("allow", "none"),
            denied: Reason::ALL.map(denied).into(),
            deferred: metrics.checks("error", Reason::Unavailable.code()),
            durations: [None, Some(Tier::Memory), Some(Tier::Database)].map(duration),
        }
    }

    fn count(&self, decision: &Decision, elapsed: Duration) {
        match decision {
            Decision::Allow(_) => self.allowed.increment(1),
            Decision::Deny(denial) => {
                let counter = self.denied.iter().find(|(reason, _)| *reason == denial.reason);
                counter.iter().for_each(|(_, counter)| counter.increment(1));
            }
            Decision::Defer(_) => self.deferred.increment(1),
        }
        let (_, _, permit) = decision.parts();
        let tier = permit.map(|permit| permit.tier);
        let histogram = self.durations.iter().find(|(of, _)| *of == tier);
        histogram.iter().for_each(|(_, histogram)| histogram.record(elapsed));
    }
}

#[cfg(test)]
mod tests;
