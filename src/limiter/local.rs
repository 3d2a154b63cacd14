//! Counts in memory, for this instance alone. Counts are exact and start at zero after a restart.

use std::{sync::Arc, time::Duration};

use super::{RateLimiter, Refusal, counts::Counts, shards::Shards};
use crate::{
    clock::Timestamps,
    limits::{Charge, LimitStatus},
    metrics::{Metrics, RateLimits},
};

/// Counts for one instance. Cheap to clone.
#[derive(Clone)]
pub struct LocalLimiter(Arc<Inner>);

/// Interval at which ended windows are dropped.
const SWEEP: Duration = Duration::from_secs(60);

struct Inner {
    keys: Shards<Counts>,
    results: RateLimits,
}

impl LocalLimiter {
    /// Starts with no counts.
    pub fn new(metrics: &Metrics) -> Self {
        Self(Arc::new(Inner { keys: Shards::new(), results: metrics.rate_limits() }))
    }

    /// Drops keys whose windows have ended, once in an interval.
    pub async fn maintain(self) {
        let mut tick = tokio::time::interval(SWEEP);
        loop {
            tick.tick().await;
            let now = Timestamps::now();
            self.0.keys.retain(|_, counts| !counts.have_ended(now));
        }
    }
}

impl RateLimiter for LocalLimiter {
    async fn charge(&self, charge: Charge) -> Result<Option<LimitStatus>, Refusal> {
        let now = Timestamps::now();
        match self.0.keys.with(charge.key, |counts| counts.charge(&charge, now)) {
            Ok(status) => {
                self.0.results.allowed.increment(1);
                Ok(Some(status))
            }
            Err(status) => {
                self.0.results.limited.increment(1);
                Err(Refusal::Limited(status))
            }
        }
    }
}
