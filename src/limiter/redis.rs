//! Counts in Redis for every instance: at each check, or in leases, which are charged in advance.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use metrics::Counter;
use tokio::sync::{Mutex, Semaphore};

use super::{LimitCounter, RateLimiter, Refusal, shards::Shards};
use crate::{
    clock::{self, Timestamps},
    config::{RateLimitCharge, RateLimitOnLoss},
    dependencies::{Cause, Dependency, Reporter},
    limits::{Charge, LimitStatus},
    metrics::{Metrics, RateLimits},
    record::KeyId,
    redis::{Redis, RedisError},
    resilience::{CallError, Rejected, Singleflight},
};

mod availability;
mod heartbeat;
mod lease;
mod maintenance;
mod membership;
mod protocol;
mod redis_clock;
mod scripts;

use availability::Availability;
use lease::{KeyState, LeaseOutcome};
use membership::{Fleet, Membership};
use protocol::{LeaseReply, LeaseRequest};
use redis_clock::RedisClock;
use scripts::Scripts;

/// Counts in Redis. Cheap to clone.
#[derive(Clone)]
pub struct RedisLimiter(Arc<Inner>);

/// How Redis counts.
#[derive(Debug, Clone, Copy)]
pub struct RedisLimiterConfig {
    /// Whether Redis is charged at each check or in advance.
    pub charge: RateLimitCharge,
    /// How keys with limits are answered while Redis does not respond.
    pub on_loss: RateLimitOnLoss,
}

struct Inner {
    config: RedisLimiterConfig,
    scripts: Scripts,
    keys: Shards<KeyState>,
    /// One call for a key at a time, where leases are requested and reconciled.
    singleflight: Singleflight<KeyId, Result<(), NoReply>>,
    /// Bounds the calls that run, where each check makes one.
    concurrency: Semaphore,
    availability: Availability,
    clock: RedisClock,
    membership: Membership,
    /// Whether all use has still to be reported to Redis.
    needs_full_report: AtomicBool,
    /// Held while all keys are reconciled.
    reconciling: Arc<Mutex<()>>,
    results: RateLimits,
    reporter: Reporter,
}

/// Why Redis gave no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoReply {
    /// Redis does not respond.
    Lost,
    /// Too many calls wait for it.
    QueueFull,
}

/// How long instances continue with their parts after an outage: time for each to notice and to reconcile.
const RECOVERY: Duration = Duration::from_secs(3);

/// Maximum number of calls that run where each check makes one. It is below the bound of the connection, which other
/// calls use too.
const CONCURRENCY: usize = 256;

impl RedisLimiter {
    /// Counts in `redis`. [`RedisLimiter::maintain`] has to run for as long as it is used.
    pub fn new(redis: Redis, config: RedisLimiterConfig, metrics: &Metrics) -> Self {
        let now = Timestamps::now();
        let recovery = match config.on_loss {
            RateLimitOnLoss::Divide => RECOVERY,
            // Instances allowed nothing that they would have to report.
            RateLimitOnLoss::Deny => Duration::ZERO,
        };
        Self(Arc::new(Inner {
            config,
            scripts: Scripts::new(redis, metrics),
            keys: Shards::new(),
            singleflight: Singleflight::default(),
            concurrency: Semaphore::new(CONCURRENCY),
            availability: Availability::new(recovery, now.monotonic),
            clock: RedisClock::new(now),
            membership: Membership::default(),
            needs_full_report: AtomicBool::new(false),
            reconciling: Arc::default(),
            results: metrics.rate_limits(),
            reporter: metrics.reporter(Dependency::RedisLimits),
        }))
    }

    /// Who counts now.
    pub(super) fn counter(&self, now: Instant) -> LimitCounter {
        let inner = &self.0;
        if inner.availability.is_up(now) {
            return LimitCounter::Redis;
        }
        let divides = inner.config.on_loss == RateLimitOnLoss::Divide && inner.membership.fleet().is_some();
        if divides { LimitCounter::Divided } else { LimitCounter::None }
    }
}

impl RateLimiter for RedisLimiter {
    fn report_late(&self) {
        let problem = "requests were not charged before the deadline of their checks (KEYSTILE_TIMEOUT)";
        self.0.reporter.fails_for(1, Cause::NoAnswer, problem);
    }

    async fn charge(&self, charge: Charge) -> Result<Option<LimitStatus>, Refusal> {
        let (inner, now) = (&self.0, clock::monotonic());
        if charge.exceeds_a_limit() {
            return Err(inner.refuse(inner.status(&charge, now)));
        }
        let charged = match inner.config.charge {
            RateLimitCharge::Leased => inner.charge_leased(&charge, now).await,
            RateLimitCharge::Exact => inner.charge_exact(&charge, now).await,
        };
        charged.map(Some)
    }
}

impl Inner {
    /// Charges the present lease if it holds enough, otherwise the next one.
    async fn charge_leased(self: &Arc<Self>, charge: &Charge, now: Instant) -> Result<LimitStatus, Refusal> {
        let (mut now, mut allowed) = (now, &self.results.leased);
        loop {
            match self.take(charge, now) {
                LeaseOutcome::Allowed(status) => return Ok(count(allowed, status)),
                LeaseOutcome::Refused(status) => return Err(self.refuse(status)),
                LeaseOutcome::Insufficient if !self.availability.is_up(now) => {
                    return self.charge_part(charge, now);
                }
                LeaseOutcome::Insufficient => {}
            }
            self.keys.with(charge.key, |state| state.add_waiting(charge));
            let renewed = self.singleflight.join(charge.key, || Arc::clone(self).renew_lease(*charge)).await;
            (now, allowed) = (clock::monotonic(), &self.results.allowed);
            match renewed {
                Ok(Ok(())) => {}
                Ok(Err(NoReply::Lost)) => return self.charge_part(charge, now),
                Ok(Err(NoReply::QueueFull)) | Err(_) => return Err(Refusal::Overloaded),
            }
        }
    }

    /// Charges Redis for this check alone.
    async fn charge_exact(&self, charge: &Charge, now: Instant) -> Result<LimitStatus, Refusal> {
        if !self.availability.is_up(now) {
            return self.charge_part(charge, now);
        }
        let Ok(_permit) = self.concurrency.acquire().await else { return Err(Refusal::Overloaded) };
        let request = self.keys.with(charge.key, |state| state.request(charge));
        match self.send(&request).await {
            Ok(reply) => {
                self.keys.with(charge.key, |state| state.apply(&request, &reply));
                let status = reply.status(charge);
                match reply.grant {
                    0 => Err(self.refuse(status)),
                    _ => Ok(count(&self.results.allowed, status)),
                }
            }
            Err(NoReply::Lost) => self.charge_part(charge, clock::monotonic()),
            Err(NoReply::QueueFull) => Err(Refusal::Overloaded),
        }
    }

    /// Charges this instance's part of each limit, without Redis.
    fn charge_part(&self, charge: &Charge, now: Instant) -> Result<LimitStatus, Refusal> {
        // Before the first heartbeat, the number of instances is unknown, and so is this one's part.
        let fleet = self.membership.fleet().filter(|_| self.config.on_loss == RateLimitOnLoss::Divide);
        let Some(fleet) = fleet else { return Err(count(&self.results.unavailable, Refusal::Unavailable)) };
        let redis_now = self.clock.now(now);
        let charged = self.keys.with(charge.key, |state| state.charge_part(charge, fleet, redis_now));
        match charged {
            Ok(status) => Ok(count(&self.results.divided, status)),
            Err(status) => Err(count(&self.results.limited_divided, Refusal::Limited(status))),
        }
    }

    fn take(&self, charge: &Charge, now: Instant) -> LeaseOutcome {
        let redis_now = self.clock.now(now);
        self.keys.with(charge.key, |state| state.take(charge, now, redis_now))
    }

    fn status(&self, charge: &Charge, now: Instant) -> LimitStatus {
        let redis_now = self.clock.now(now);
        self.keys.with(charge.key, |state| state.status(charge, redis_now))
    }

    fn refuse(&self, status: LimitStatus) -> Refusal {
        count(&self.results.limited, Refusal::Limited(status))
    }

    /// Requests the next lease of a key. Runs to its end even if its caller leaves: the next one uses the lease.
    async fn renew_lease(self: Arc<Self>, charge: Charge) -> Result<(), NoReply> {
        let alone = Fleet { count: 1, position: 0 };
        let (fleet, sent) = (self.membership.fleet().unwrap_or(alone), clock::monotonic());
        let request = self.keys.with(charge.key, |state| state.request_lease(&charge, fleet, sent));
        let reply = self.send(&request).await;
        self.keys.with(charge.key, |state| match &reply {
            Ok(reply) => state.apply_lease(&charge, &request, reply, sent),
            Err(_) => state.fail_request(),
        });
        reply.map(drop)
    }

    async fn send(&self, request: &LeaseRequest) -> Result<LeaseReply, NoReply> {
        let answer = self.scripts.charge(request).await;
        if let Err(error) = &answer {
            // The next heartbeat that succeeds ends an outage. It does not need every right that a charge needs.
            match error {
                RedisError::Refused(_) | RedisError::Rejected(Rejected::QueueFull) => {
                    self.reporter.fails_for(1, error.cause(), error.problem());
                }
                RedisError::Rejected(_) | RedisError::Unavailable(_) | RedisError::NotServing(_) => {
                    self.reporter.fails(error.cause(), error.problem());
                }
            }
        }
        self.check_answer(answer)
    }

    /// Marks Redis as lost where it did not answer.
    fn check_answer<T>(&self, answer: Result<T, RedisError>) -> Result<T, NoReply> {
        answer.map_err(|error| match error {
            RedisError::Rejected(Rejected::QueueFull) => NoReply::QueueFull,
            RedisError::Rejected(_)
            | RedisError::Unavailable(_)
            | RedisError::NotServing(_)
            | RedisError::Refused(_) => {
                self.availability.mark_lost();
                NoReply::Lost
            }
        })
    }
}

/// Increments a counter and passes a value through.
fn count<T>(counter: &Counter, value: T) -> T {
    counter.increment(1);
    value
}
