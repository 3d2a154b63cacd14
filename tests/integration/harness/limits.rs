//! Instances that count in one Redis, without the rest of Keystile.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use keystile::{
    clock::Timestamps,
    config::{RateLimitCharge, RateLimitOnLoss},
    limiter::{RateLimiter, RedisLimiter, RedisLimiterConfig, Refusal},
    limits::{Charge, LimitStatus},
    metrics::Metrics,
    record::{KeyId, Limits},
    redis::Redis,
};
use tokio::task::{AbortHandle, JoinSet};

use super::until;

/// One instance.
pub struct Instance {
    pub limiter: RedisLimiter,
    pub metrics: Metrics,
    maintenance: AbortHandle,
}

/// Exact counts. An instance continues with its part while Redis is lost.
pub const EXACT: RedisLimiterConfig =
    RedisLimiterConfig { charge: RateLimitCharge::Exact, on_loss: RateLimitOnLoss::Divide };
/// The same with leases.
pub const LEASED: RedisLimiterConfig = RedisLimiterConfig { charge: RateLimitCharge::Leased, ..EXACT };

impl Instance {
    /// Starts an instance with this deadline for each call to Redis.
    pub fn start(url: &str, config: RedisLimiterConfig, timeout: Duration) -> Self {
        let metrics = Metrics::new().unwrap();
        let redis = Redis::connect(&url.parse().unwrap(), timeout, &metrics).unwrap();
        let limiter = RedisLimiter::new(redis, config, &metrics);
        let maintenance = tokio::spawn(limiter.clone().maintain()).abort_handle();
        Self { limiter, metrics, maintenance }
    }

    /// Several instances that know each other and have had no request yet.
    pub async fn fleet(
        url: &str,
        config: RedisLimiterConfig,
        count: usize,
        timeout: Duration,
    ) -> Arc<[Self]> {
        let mut fleet = Vec::new();
        for _ in 0..count {
            fleet.push(Self::start(url, config, timeout));
            // Not at the same time, as in production: an instance learns of the others later.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let fleet: Arc<[_]> = fleet.into();
        let wait = "all know each other";
        let all_up = async || fleet.iter().all(Self::up);
        until(wait, Duration::from_secs(20), all_up).await;
        // One more heartbeat: the first instance does not know the others yet.
        let before: Vec<_> = fleet.iter().map(Self::beats).collect();
        let again = async || fleet.iter().zip(&before).all(|(instance, before)| instance.beats() > *before);
        until(wait, Duration::from_secs(20), again).await;
        fleet
    }

    fn beats(&self) -> u64 {
        let text = self.metrics.render();
        let line = r#"keystile_store_duration_seconds_count{store="redis",operation="beat"} "#;
        text.lines().find_map(|found| found.strip_prefix(line)?.parse().ok()).unwrap_or(0)
    }

    fn up(&self) -> bool {
        self.metrics.render().contains(r#"keystile_store_up{store="redis"} 1"#)
    }

    pub async fn charge(&self, charge: Charge) -> Result<LimitStatus, Refusal> {
        self.limiter.charge(charge).await.map(|status| status.expect("counted"))
    }

    /// The number of requests with this result.
    pub fn counted(&self, result: &str) -> u64 {
        let line = format!("keystile_rate_limit_total{{result=\"{result}\"}} ");
        let text = self.metrics.render();
        text.lines().find_map(|found| found.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.maintenance.abort();
    }
}

/// A request of the key `id`.
pub fn charge(id: i64, minute: Option<u64>, day: Option<u64>) -> Charge {
    Charge { key: KeyId(id), limits: Limits { minute, hour: None, day }, cost: NonZeroU32::MIN }
}

/// Requests at all instances at the same time, and their results.
pub async fn burst(
    fleet: &Arc<[Instance]>,
    charge: Charge,
    requests: usize,
) -> Vec<Result<LimitStatus, Refusal>> {
    let mut callers = JoinSet::new();
    for number in 0..requests {
        let fleet = Arc::clone(fleet);
        callers.spawn(async move { fleet[number % fleet.len()].charge(charge).await });
    }
    callers.join_all().await
}

/// The number of requests that passed.
pub fn passed<T>(results: &[Result<LimitStatus, T>]) -> usize {
    results.iter().filter(|result| result.is_ok()).count()
}

/// Waits, if needed, until this many seconds remain of the minute.
pub async fn seconds_left(seconds: u64) {
    let second = || Timestamps::now().wall.second();
    let far = || u64::from(second()) + seconds < 60;
    until("the minute has begun", Duration::from_secs(61), async || far()).await;
}
