//! Tasks that watch the dependencies and the answers: each fault has a state, and the process follows.

use std::time::Duration;

use tokio::{
    runtime::Handle,
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tracing::debug;

use super::answers::AnswerWatch;
use crate::{
    clock,
    dependencies::Dependency,
    health::Health,
    limiter::{LimitCounter, Limiter},
    metrics::Metrics,
    resilience::CallError,
    revocation::FeedState,
    store::{Database, RedisTier},
    verifier::Verifier,
};

/// Interval of the probes of the database and Redis, and of the upkeep of histograms.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Interval between reads of the costs of all hashes, to notice that they became lower. A higher cost is noticed when
/// its hash is first used.
const COST_INTERVAL: Duration = Duration::from_secs(300);

/// Makes the look-up that a check makes. The process is ready once it was answered and the change log was read.
pub(super) async fn watch_database(
    database: Database,
    mut feed: watch::Receiver<FeedState>,
    health: Health,
    metrics: Metrics,
) {
    let look_ups = metrics.reporter(Dependency::Database);
    let budgets = metrics.reporter(Dependency::Budgets);
    let (mut answers, tasks) = (AnswerWatch::default(), metrics.tasks());
    let mut tick = interval(HOUSEKEEPING);
    loop {
        tick.tick().await;
        match database.ping().await {
            Ok(()) => {
                look_ups.works();
                budgets.works();
                // Not ready before the first read of the log. Until the changes are known, records from Redis are not
                // trusted, and each check would cost one more bcrypt computation. The feed ends only with the process,
                // so an error here does not matter.
                let _ = feed.wait_for(|state| state.has_looked).await;
                health.database_answered();
            }
            // An answer that is no outage may concern the budgets alone.
            Err(error) if !error.is_outage() && database.ping_without_budgets().await.is_ok() => {
                look_ups.works();
                budgets.fails(error.cause(), error.problem());
            }
            Err(error) => look_ups.fails(error.cause(), error.problem()),
        }
        database.export_connections();
        tasks.set(Handle::current().metrics().num_alive_tasks() as f64);
        metrics.states().tick();
        answers.look(&metrics, clock::monotonic());
        metrics.upkeep();
    }
}

/// Reads and writes in Redis as a check does.
pub(super) async fn watch_redis(redis: RedisTier<Database>, metrics: Metrics) {
    let reporter = metrics.reporter(Dependency::RedisCache);
    let mut tick = interval(HOUSEKEEPING);
    loop {
        tick.tick().await;
        match redis.probe().await {
            Ok(()) => reporter.works(),
            Err(error) => reporter.fails(error.cause(), error.problem()),
        }
    }
}

/// Exports who counts the limits of keys.
pub(super) async fn watch_limiter(limiter: Limiter, metrics: Metrics) {
    let gauges = LimitCounter::ALL.map(|counter| (counter, metrics.limits_counted(counter.name())));
    let mut tick = interval(HOUSEKEEPING);
    loop {
        tick.tick().await;
        let present = limiter.counter(clock::monotonic());
        for (counter, gauge) in &gauges {
            gauge.set(if *counter == present { 1.0 } else { 0.0 });
        }
    }
}

/// Gives the verifier the cost of the costliest active hash, which refusals imitate.
pub(super) async fn learn_cost(database: Database, verifier: Verifier, metrics: Metrics) {
    let reporter = metrics.reporter(Dependency::Bcrypt);
    let mut tick = interval(COST_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        loop {
            match database.highest_cost().await {
                Ok(highest) => break verifier.learn_cost(highest),
                // While the database does not answer, its own state says so.
                Err(error) if error.is_outage() => {
                    debug!(%error, "the costs of the hashes could not be read")
                }
                Err(error) => {
                    let problem = format!("the costs of the hashes could not be read: {}", error.problem());
                    reporter.fails_for(1, error.cause(), problem);
                }
            }
            tokio::time::sleep(HOUSEKEEPING).await;
        }
    }
}
