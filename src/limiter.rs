//! Rate limits: one trait, and the backends that count.
//!
//! [`LocalLimiter`] counts for this instance alone. [`RedisLimiter`] counts in Redis for every instance. While Redis does
//! not respond, it allows this instance a part of each limit.

use std::{future::Future, time::Instant};

use crate::limits::{Charge, LimitStatus};

mod counts;
mod local;
mod redis;
mod shards;

pub use local::LocalLimiter;
pub use redis::{RedisLimiter, RedisLimiterConfig};

/// Charges requests against the limits of their keys.
pub trait RateLimiter: Send + Sync + 'static {
    /// Whether requests are counted here at all.
    fn is_enabled(&self) -> bool {
        true
    }

    /// Reports that a request was not charged before the deadline of its check.
    fn report_late(&self) {}

    /// Charges all windows of the key that have a limit, or none of them.
    ///
    /// `None` means that requests are not counted here.
    ///
    /// # Errors
    /// [`Refusal`] when the request was not charged.
    fn charge(&self, charge: Charge) -> impl Future<Output = Result<Option<LimitStatus>, Refusal>> + Send;
}

/// Why a request was not charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A window has less left than the request costs.
    Limited(LimitStatus),
    /// Requests cannot be counted at present, and the operator denies them in this case.
    Unavailable,
    /// Too many requests wait to be counted.
    Overloaded,
}

/// Who counts the limits of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitCounter {
    /// Not Keystile: the upstream may count.
    Upstream,
    /// This instance alone.
    Local,
    /// Redis, for all instances.
    Redis,
    /// This instance counts its part of each limit, because Redis does not count.
    Divided,
    /// Nothing can count: keys with limits are denied.
    None,
}

impl LimitCounter {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Upstream, Self::Local, Self::Redis, Self::Divided, Self::None];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Local => "local",
            Self::Redis => "redis",
            Self::Divided => "divided",
            Self::None => "none",
        }
    }
}

/// The limiter that the operator chose. Cheap to clone.
#[derive(Clone)]
pub enum Limiter {
    /// Requests are not counted. The upstream gets the limits and enforces them.
    Off,
    /// Counts in this instance.
    Local(LocalLimiter),
    /// Counts in Redis.
    Redis(RedisLimiter),
}

impl Limiter {
    /// Does the limiter's background work. Runs until it is dropped.
    pub async fn maintain(self) {
        match self {
            Self::Off => {}
            Self::Local(local) => local.maintain().await,
            Self::Redis(redis) => redis.maintain().await,
        }
    }

    /// Who counts now.
    pub fn counter(&self, now: Instant) -> LimitCounter {
        match self {
            Self::Off => LimitCounter::Upstream,
            Self::Local(_) => LimitCounter::Local,
            Self::Redis(redis) => redis.counter(now),
        }
    }

    /// Gives back all leases and leaves the other instances, at a shutdown.
    pub async fn leave(&self) {
        if let Self::Redis(redis) = self {
            redis.leave().await;
        }
    }
}

impl RateLimiter for Limiter {
    fn is_enabled(&self) -> bool {
        !matches!(self, Self::Off)
    }

    fn report_late(&self) {
        match self {
            Self::Off | Self::Local(_) => {}
            Self::Redis(redis) => redis.report_late(),
        }
    }

    async fn charge(&self, charge: Charge) -> Result<Option<LimitStatus>, Refusal> {
        match self {
            Self::Off => Ok(None),
            Self::Local(local) => local.charge(charge).await,
            Self::Redis(redis) => Box::pin(redis.charge(charge)).await,
        }
    }
}
