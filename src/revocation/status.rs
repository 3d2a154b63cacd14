//! The feed's report about itself: its state and its metrics. Its state is logged with those of the other dependencies.

use std::time::Instant;

use metrics::{Counter, Gauge, Histogram};
use serde::Serialize;
use tokio::sync::watch;

use super::{
    conditions::{Cause, Problem},
    log::LoggedChange,
};
use crate::{
    clock,
    dependencies::{Dependency, Fault, Reporter},
    metrics::Metrics,
};

/// The state of the feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FeedState {
    /// Where changes are read.
    pub source: Source,
    /// Whether changes are applied within one second of their commit.
    pub up: bool,
    /// Whether the database sends notifications to the feed. If it does not, the log is polled.
    pub listening: bool,
    /// Why the feed is not up.
    pub problems: Vec<Problem>,
    /// Whether the first read is done, or the feed no longer waits for it after several failures.
    #[serde(skip)]
    pub has_looked: bool,
    /// The newest entry of the log. `None` without a log.
    #[serde(skip)]
    pub newest: Option<String>,
}

/// Where changes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// There was no read yet.
    Nothing,
    /// The log that triggers write.
    Log,
    /// The columns `updated_at`, used where there is no log.
    UpdatedAt,
}

/// The state, and the metrics that report it.
pub(super) struct Status {
    state: watch::Sender<FeedState>,
    reporter: Reporter,
    up: Gauge,
    last_read: Gauge,
    last_change: Gauge,
    degraded: Vec<(Cause, Gauge)>,
    changes: Counter,
    commands: Counter,
    gaps: Counter,
    hints: Counter,
    lag: Histogram,
}

impl Status {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let source = |source| metrics.invalidations(source);
        let state = FeedState {
            source: Source::Nothing,
            up: false,
            listening: false,
            problems: Vec::new(),
            has_looked: false,
            newest: None,
        };
        let status = Self {
            state: watch::Sender::new(state),
            reporter: metrics.reporter(Dependency::ChangeFeed),
            last_read: metrics.change_feed_last_read(),
            last_change: metrics.change_feed_last_change(),
            up: metrics.change_feed_up(),
            degraded: Cause::ALL.map(|cause| (cause, metrics.change_feed_degraded(cause.name()))).into(),
            changes: source("change"),
            commands: source("command"),
            gaps: source("gap"),
            hints: source("hint"),
            lag: metrics.revocation_lag(),
        };
        status.up.set(0.0);
        status.degraded.iter().for_each(|(_, gauge)| gauge.set(0.0));
        status
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<FeedState> {
        self.state.subscribe()
    }

    /// Reports that the last read is too old while the next one has not ended.
    pub(super) fn lapse(&self) {
        let state = self.state.borrow().clone();
        let problems = vec![Cause::Unreadable.with("no answer within a second")];
        self.report(FeedState { up: false, problems, ..state });
    }

    /// Counts that all cached records were dropped.
    pub(super) fn gap(&self) {
        self.gaps.increment(1);
    }

    /// Counts the keys that were dropped because of a hint.
    pub(super) fn hints(&self, keys: usize) {
        self.hints.increment(keys as u64);
    }

    /// Exports the time of a read that has just ended, and of the newest change in it.
    pub(super) fn has_read(&self, logged: &[LoggedChange]) {
        let now = clock::wall().unix_timestamp_nanos() as f64 / 1e9;
        self.last_read.set(now);
        if let Some(ago) = logged.iter().map(|logged| logged.ago).min() {
            self.last_change.set(now - ago.as_secs_f64());
        }
    }

    /// Counts the entries that were applied. `started` is the start of the read that returned them.
    pub(super) fn count(&self, logged: &[LoggedChange], started: Instant) {
        for LoggedChange { ago, by_command, .. } in logged {
            let count = if *by_command { &self.commands } else { &self.changes };
            count.increment(1);
            self.lag.record(*ago + started.elapsed());
        }
    }

    pub(super) fn report(&self, state: FeedState) {
        // One failed read does not cancel the result of the read before it.
        let problems = if state.up { &[][..] } else { &state.problems };
        self.up.set(if state.up { 1.0 } else { 0.0 });
        for (cause, gauge) in &self.degraded {
            let is_cause = problems.iter().any(|problem| problem.cause == *cause);
            gauge.set(if is_cause { 1.0 } else { 0.0 });
        }
        if state.up {
            self.reporter.works();
        } else if !problems.is_empty() {
            let fault = |problem: &Problem| Fault {
                cause: problem.cause.name(),
                problem: problem.to_string(),
                fix: problem.fix.to_owned(),
            };
            self.reporter.fails_by(problems.iter().map(fault).collect());
        }
        let has_looked = state.has_looked || self.state.borrow().has_looked;
        self.state.send_if_modified(|present| {
            let next = FeedState { problems: problems.to_vec(), has_looked, ..state };
            let is_new = *present != next;
            *present = next;
            is_new
        });
    }
}
