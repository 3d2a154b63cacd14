//! Redis counts for every sidecar: at each check, or in shares that are taken ahead.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use metrics::Counter;
use tokio::sync::{Mutex, Semaphore};

use super::{
    RateLimiter, Refusal,
    lease::{Fleet, Order, Reply, Slot, Taken},
    shards::Shards,
};
use crate::{
    clock::{self, Timestamps},
    config::{RateLimitCharge, RateLimitOnLoss},
    limits::{Bill, Standing},
    metrics::{Metrics, RateLimits},
    record::KeyId,
    redis::{Redis, RedisError},
    resilience::Rejected,
    resilience::Singleflight,
};

mod keeper;
mod link;
mod script;

use link::{Clock, Link, Others};
use script::Scripts;

/// Counts in Redis. Cheap to clone.
#[derive(Clone)]
pub struct Shared(Arc<Inner>);

/// How Redis is charged.
#[derive(Debug, Clone, Copy)]
pub struct SharedConfig {
    /// At each check, or ahead.
    pub charge: RateLimitCharge,
    /// What becomes of keys with limits while Redis does not answer.
    pub on_loss: RateLimitOnLoss,
}

struct Inner {
    config: SharedConfig,
    scripts: Scripts,
    keys: Shards<Slot>,
    /// One call for each key at a time, where shares are taken and settled.
    singleflight: Singleflight<KeyId, Result<(), Missed>>,
    /// Calls at a time, where each check makes one.
    places: Semaphore,
    link: Link,
    clock: Clock,
    others: Others,
    /// Whether all that was used has still to be told to Redis.
    resync: AtomicBool,
    /// Held by whoever settles all keys.
    settling: Arc<Mutex<()>>,
    results: RateLimits,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missed {
    /// Redis does not answer.
    Lost,
    /// Too many ask.
    Full,
}

/// How long after an outage sidecars go on with their parts: time for each to notice and to settle.
const SETTLING: Duration = Duration::from_secs(3);

/// Calls under way where each check makes one: below the bound of the connection, which others use too.
const PLACES: usize = 256;

impl Shared {
    /// Counts by way of `redis`. [`Shared::keep`] has to run beside it.
    pub fn new(redis: Redis, config: SharedConfig, metrics: &Metrics) -> Self {
        let settling = match config.on_loss {
            RateLimitOnLoss::Divide => SETTLING,
            // Nothing was let through that Redis would have to be told.
            RateLimitOnLoss::Deny => Duration::ZERO,
        };
        Self(Arc::new(Inner {
            config,
            scripts: Scripts::new(redis, metrics),
            keys: Shards::new(),
            singleflight: Singleflight::default(),
            places: Semaphore::new(PLACES),
            link: Link::new(settling),
            clock: Clock::new(),
            others: Others::default(),
            resync: AtomicBool::new(false),
            settling: Arc::default(),
            results: metrics.rate_limits(),
        }))
    }
}

impl RateLimiter for Shared {
    async fn charge(&self, bill: Bill, now: Timestamps) -> Result<Option<Standing>, Refusal> {
        let inner = &self.0;
        let charged = match inner.config.charge {
            _ if bill.is_hopeless() => Err(inner.refuse(inner.standing(&bill, now.monotonic))),
            RateLimitCharge::Leased => inner.charge_leased(&bill, now.monotonic).await,
            RateLimitCharge::Exact => inner.charge_exact(&bill, now.monotonic).await,
        };
        charged.map(Some)
    }
}

impl Inner {
    /// From the share, if there is enough in it; else from the next one.
    async fn charge_leased(self: &Arc<Self>, bill: &Bill, now: Instant) -> Result<Standing, Refusal> {
        let (mut now, mut allowed) = (now, &self.results.leased);
        loop {
            match self.take(bill, now) {
                Taken::Yes(standing) => return Ok(counted(allowed, standing)),
                Taken::No(standing) => return Err(self.refuse(standing)),
                Taken::Ask if !self.link.is_up(now) => return self.charge_part(bill, now),
                Taken::Ask => {}
            }
            self.keys.with(bill.key, |slot| slot.wait(bill));
            let fetched = self.singleflight.join(bill.key, || Arc::clone(self).fetch(*bill)).await;
            (now, allowed) = (clock::monotonic(), &self.results.allowed);
            match fetched {
                Ok(Ok(())) => {}
                Ok(Err(Missed::Lost)) => return self.charge_part(bill, now),
                Ok(Err(Missed::Full)) | Err(_) => return Err(Refusal::Overloaded),
            }
        }
    }

    /// At this check, for this check.
    async fn charge_exact(&self, bill: &Bill, now: Instant) -> Result<Standing, Refusal> {
        if !self.link.is_up(now) {
            return self.charge_part(bill, now);
        }
        let Ok(_place) = self.places.acquire().await else { return Err(Refusal::Overloaded) };
        let order = self.keys.with(bill.key, |slot| slot.order(bill));
        match self.send(&order).await {
            Ok(reply) => {
                self.keys.with(bill.key, |slot| slot.learn(&order, &reply));
                let standing = reply.standing(bill);
                match reply.grant {
                    0 => Err(self.refuse(standing)),
                    _ => Ok(counted(&self.results.allowed, standing)),
                }
            }
            Err(Missed::Lost) => self.charge_part(bill, clock::monotonic()),
            Err(Missed::Full) => Err(Refusal::Overloaded),
        }
    }

    /// Without Redis.
    fn charge_part(&self, bill: &Bill, now: Instant) -> Result<Standing, Refusal> {
        // Who never heard how many they are cannot know its part.
        let fleet = self.others.fleet().filter(|_| self.config.on_loss == RateLimitOnLoss::Divide);
        let Some(fleet) = fleet else { return Err(counted(&self.results.unavailable, Refusal::Unavailable)) };
        let redis_now = self.clock.now(now);
        let charged = self.keys.with(bill.key, |slot| slot.charge_part(bill, fleet, redis_now));
        match charged {
            Ok(standing) => Ok(counted(&self.results.divided, standing)),
            Err(standing) => Err(counted(&self.results.limited_divided, Refusal::Limited(standing))),
        }
    }

    fn take(&self, bill: &Bill, now: Instant) -> Taken {
        let redis_now = self.clock.now(now);
        self.keys.with(bill.key, |slot| slot.take(bill, now, redis_now))
    }

    fn standing(&self, bill: &Bill, now: Instant) -> Standing {
        let redis_now = self.clock.now(now);
        self.keys.with(bill.key, |slot| slot.standing(bill, redis_now))
    }

    fn refuse(&self, standing: Standing) -> Refusal {
        counted(&self.results.limited, Refusal::Limited(standing))
    }

    /// Takes the next share of a key. Runs to its end whoever leaves: what it brings is there for the next.
    async fn fetch(self: Arc<Self>, bill: Bill) -> Result<(), Missed> {
        let (fleet, sent) = (self.others.fleet().unwrap_or(Fleet { count: 1, place: 0 }), clock::monotonic());
        let order = self.keys.with(bill.key, |slot| slot.order_share(&bill, fleet, sent));
        let reply = self.send(&order).await;
        self.keys.with(bill.key, |slot| match &reply {
            Ok(reply) => slot.learn_share(&bill, &order, reply, sent),
            Err(_) => slot.miss(),
        });
        reply.map(drop)
    }

    async fn send(&self, order: &Order) -> Result<Reply, Missed> {
        self.notice(self.scripts.charge(order).await)
    }

    /// Takes it into account that there is no answer.
    fn notice<T>(&self, answer: Result<T, RedisError>) -> Result<T, Missed> {
        answer.map_err(|error| match error {
            RedisError::Rejected(Rejected::QueueFull) => Missed::Full,
            error => {
                self.link.lose(&error);
                Missed::Lost
            }
        })
    }
}

/// Counts on the way.
fn counted<T>(counter: &Counter, value: T) -> T {
    counter.increment(1);
    value
}
