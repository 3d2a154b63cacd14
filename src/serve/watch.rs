//! Tasks that watch the dependencies: each loss and each return is logged, and the state of the process follows.

use std::time::{Duration, Instant};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tracing::{debug, info, warn};

use crate::{
    clock, health::Health, metrics::Metrics, redis::Redis, revocation::FeedState, store::Database,
    verifier::Verifier,
};

/// Interval of the pings to the database and Redis, and of the upkeep of histograms.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Interval between reads of the costs of all hashes, to notice that they became lower. A higher cost is noticed when
/// its hash is first used.
const COST_INTERVAL: Duration = Duration::from_secs(300);

/// Pings the database. The process is ready once it has answered and the change log was read.
pub(super) async fn watch_database(
    database: Database,
    mut feed: watch::Receiver<FeedState>,
    health: Health,
    metrics: Metrics,
) {
    let mut log = DependencyLog::new(database.name());
    let mut tick = interval(HOUSEKEEPING);
    loop {
        tick.tick().await;
        let problem = database.ping().await.err().map(|error| error.to_string());
        log.record(problem.as_deref(), clock::monotonic());
        if problem.is_none() {
            // Not ready before the first read of the log. Until the changes are known, records from Redis are not
            // trusted, and each check would cost one more bcrypt computation. The feed ends only with the process, so
            // an error here does not matter.
            let _ = feed.wait_for(|state| state.has_looked).await;
        }
        health.database_answered(problem);
        metrics.upkeep();
    }
}

/// Pings Redis.
pub(super) async fn watch_redis(redis: Redis, health: Health) {
    let mut log = DependencyLog::new("redis");
    let mut tick = interval(HOUSEKEEPING);
    loop {
        tick.tick().await;
        let problem = redis.ping().await.err().map(|error| error.to_string());
        log.record(problem.as_deref(), clock::monotonic());
        health.redis_answered(problem);
    }
}

/// Gives the verifier the cost of the costliest active hash, which refusals imitate.
pub(super) async fn learn_cost(database: Database, verifier: Verifier) {
    let mut tick = interval(COST_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        loop {
            match database.highest_cost().await {
                Ok(highest) => break verifier.learn_cost(highest),
                Err(error) => debug!(%error, "the costs of the hashes could not be read"),
            }
            tokio::time::sleep(HOUSEKEEPING).await;
        }
    }
}

/// Logs when a dependency is lost, with each cause, and when the dependency is back.
struct DependencyLog {
    name: &'static str,
    /// The causes that were logged since the dependency was lost.
    causes: Vec<String>,
    warned: Option<Instant>,
    has_answered: bool,
}

/// What is logged.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Lost,
    Back,
    First,
}

/// Number of causes that are logged at once. The text of an error may change with every attempt, so more than these are
/// logged once in [`WARNING_INTERVAL`].
const CAUSES: usize = 3;
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

impl DependencyLog {
    fn new(name: &'static str) -> Self {
        Self { name, causes: Vec::new(), warned: None, has_answered: false }
    }

    fn record(&mut self, problem: Option<&str>, now: Instant) {
        match self.entry(problem, now) {
            Some(Entry::Lost) => warn!(dependency = self.name, problem, "a dependency does not work"),
            Some(Entry::Back) => info!(dependency = self.name, "the dependency works again"),
            Some(Entry::First) => info!(dependency = self.name, "the dependency works"),
            None => {}
        }
    }

    fn entry(&mut self, problem: Option<&str>, now: Instant) -> Option<Entry> {
        let Some(problem) = problem else {
            let was_lost = !std::mem::take(&mut self.causes).is_empty();
            let is_first = !std::mem::replace(&mut self.has_answered, true);
            return if is_first { Some(Entry::First) } else { was_lost.then_some(Entry::Back) };
        };
        if self.causes.iter().any(|cause| cause == problem) {
            return None;
        }
        if self.causes.len() < CAUSES {
            self.causes.push(problem.to_owned());
        } else if self.warned.is_some_and(|warned| now.saturating_duration_since(warned) < WARNING_INTERVAL) {
            return None;
        }
        self.warned = Some(now);
        Some(Entry::Lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_and_return_are_logged_once() {
        let (mut log, now) = (DependencyLog::new("redis"), Instant::now());
        let later = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(log.entry(None, now), Some(Entry::First));
        assert_eq!(log.entry(None, later(1)), None);
        assert_eq!(log.entry(Some("refused"), later(2)), Some(Entry::Lost));
        assert_eq!(log.entry(Some("refused"), later(500)), None);
        assert_eq!(log.entry(None, later(501)), Some(Entry::Back));
        assert_eq!(log.entry(Some("refused"), later(502)), Some(Entry::Lost));
    }

    #[test]
    fn each_cause_is_logged_and_a_text_that_changes_all_the_time_once_a_minute() {
        let (mut log, now) = (DependencyLog::new("redis"), Instant::now());
        let mut lost = |seconds: std::ops::Range<u64>, cause: fn(u64) -> String| {
            let entries = seconds.filter(|second| {
                let entry = log.entry(Some(&cause(*second)), now + Duration::from_secs(*second));
                entry == Some(Entry::Lost)
            });
            entries.count()
        };
        assert_eq!(lost(0..100, |second| format!("cause {}", second % 2)), 2);
        assert_eq!(lost(100..340, |second| format!("attempt {second}")), 1 + 3);
    }
}
