//! Sidecars that count in one Redis, without the rest of Keystile.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use keystile::{
    clock::Timestamps,
    config::{RateLimitCharge, RateLimitOnLoss},
    limiter::{RateLimiter, Refusal, Shared, SharedConfig},
    limits::{Bill, Standing},
    metrics::Metrics,
    record::{KeyId, Limits},
    redis::Redis,
};
use tokio::task::{AbortHandle, JoinSet};

use super::until;

/// One of them.
pub struct Sidecar {
    pub limiter: Shared,
    pub metrics: Metrics,
    keeper: AbortHandle,
}

/// Exact, and going on with its part while Redis is lost.
pub const EXACT: SharedConfig =
    SharedConfig { charge: RateLimitCharge::Exact, on_loss: RateLimitOnLoss::Divide };
/// The same with shares.
pub const LEASED: SharedConfig = SharedConfig { charge: RateLimitCharge::Leased, ..EXACT };

impl Sidecar {
    /// With a deadline for each call to Redis.
    pub fn start(url: &str, config: SharedConfig, timeout: Duration) -> Self {
        let metrics = Metrics::new().unwrap();
        let redis = Redis::connect(&url.parse().unwrap(), timeout, &metrics).unwrap();
        let limiter = Shared::new(redis, config, &metrics);
        let keeper = tokio::spawn(limiter.clone().keep()).abort_handle();
        Self { limiter, metrics, keeper }
    }

    /// Several, once all know of one another and are asked by nobody yet.
    pub async fn fleet(url: &str, config: SharedConfig, count: usize, timeout: Duration) -> Arc<[Self]> {
        let mut fleet = Vec::new();
        for _ in 0..count {
            fleet.push(Self::start(url, config, timeout));
            // Apart, as real ones are: what one knows, others hear of later.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let fleet: Arc<[_]> = fleet.into();
        let wait = "all know of one another";
        let all_up = async || fleet.iter().all(Self::up);
        until(wait, Duration::from_secs(20), all_up).await;
        // Once more: who beat first has not heard of the others.
        let before: Vec<_> = fleet.iter().map(Self::beats).collect();
        let again = async || fleet.iter().zip(&before).all(|(sidecar, before)| sidecar.beats() > *before);
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

    pub async fn charge(&self, bill: Bill) -> Result<Standing, Refusal> {
        self.limiter.charge(bill, Timestamps::now()).await.map(|standing| standing.expect("counted"))
    }

    /// How many requests had this result.
    pub fn counted(&self, result: &str) -> u64 {
        let line = format!("keystile_rate_limit_total{{result=\"{result}\"}} ");
        let text = self.metrics.render();
        text.lines().find_map(|found| found.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// A request of the key `id`.
pub fn bill(id: i64, minute: Option<u64>, day: Option<u64>) -> Bill {
    Bill { key: KeyId(id), limits: Limits { minute, hour: None, day }, cost: NonZeroU32::MIN }
}

/// Requests at all sidecars at the same time; what became of them.
pub async fn burst(fleet: &Arc<[Sidecar]>, bill: Bill, requests: usize) -> Vec<Result<Standing, Refusal>> {
    let mut callers = JoinSet::new();
    for number in 0..requests {
        let fleet = Arc::clone(fleet);
        callers.spawn(async move { fleet[number % fleet.len()].charge(bill).await });
    }
    callers.join_all().await
}

/// How many passed.
pub fn passed<T>(results: &[Result<Standing, T>]) -> usize {
    results.iter().filter(|result| result.is_ok()).count()
}

/// Waits, if need be, until so many seconds are left of this minute.
pub async fn seconds_left(seconds: u64) {
    let second = || Timestamps::now().wall.second();
    let far = || u64::from(second()) + seconds < 60;
    until("the minute has begun", Duration::from_secs(61), async || far()).await;
}
