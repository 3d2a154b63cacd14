//! Counts in memory, for this process alone: exact, and forgotten at a restart.

use std::{sync::Arc, time::Duration};

use super::{RateLimiter, Refusal, counts::Counts, shards::Shards};
use crate::{
    clock::Timestamps,
    limits::{Bill, Standing},
    metrics::{Metrics, RateLimits},
};

/// Counts for one process. Cheap to clone.
#[derive(Clone)]
pub struct Local(Arc<Inner>);

const SWEEP: Duration = Duration::from_secs(60);

struct Inner {
    keys: Shards<Counts>,
    results: RateLimits,
}

impl Local {
    /// Counts from nothing.
    pub fn new(metrics: &Metrics) -> Self {
        Self(Arc::new(Inner { keys: Shards::new(), results: metrics.rate_limits() }))
    }

    /// Forgets keys whose windows are over, now and then.
    pub async fn keep(self) {
        let mut tick = tokio::time::interval(SWEEP);
        loop {
            tick.tick().await;
            let now = Timestamps::now();
            self.0.keys.retain(|_, counts| !counts.are_over(now));
        }
    }
}

impl RateLimiter for Local {
    async fn charge(&self, bill: Bill, now: Timestamps) -> Result<Option<Standing>, Refusal> {
        match self.0.keys.with(bill.key, |counts| counts.charge(&bill, now)) {
            Ok(standing) => {
                self.0.results.allowed.increment(1);
                Ok(Some(standing))
            }
            Err(standing) => {
                self.0.results.limited.increment(1);
                Err(Refusal::Limited(standing))
            }
        }
    }
}
