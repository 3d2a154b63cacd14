//! What the feed says about itself: its state, its metrics, and one log line for each change of state.

use std::time::Instant;

use metrics::{Counter, Gauge, Histogram};
use serde::Serialize;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    conditions::{Cause, Problem},
    log::Logged,
};
use crate::metrics::Metrics;

/// The state of the feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FeedState {
    /// Where changes are read.
    pub source: Source,
    /// Whether changes are applied within a second of their commit.
    pub up: bool,
    /// Whether the database notifies the feed. Where it does not, the log is polled.
    pub listening: bool,
    /// Why the feed is not up.
    pub problems: Vec<Problem>,
    /// Whether the first read is over, or was given up.
    #[serde(skip)]
    pub has_looked: bool,
}

/// Where changes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Nowhere yet.
    Nothing,
    /// The log that triggers write.
    Log,
    /// The columns `updated_at`, where there is no log.
    UpdatedAt,
}

/// The state, and what tells of it.
pub(super) struct Status {
    state: watch::Sender<FeedState>,
    up: Gauge,
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
        };
        let status = Self {
            state: watch::Sender::new(state),
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

    /// The last read is too old, and the next one has not ended.
    pub(super) fn lapse(&self) {
        let state = self.state.borrow().clone();
        let problems = vec![Cause::Unreadable.with("no answer within a second")];
        self.report(FeedState { up: false, problems, ..state });
    }

    /// Everything was dropped.
    pub(super) fn gap(&self) {
        self.gaps.increment(1);
    }

    /// So many keys were dropped on a hint.
    pub(super) fn hints(&self, keys: usize) {
        self.hints.increment(keys as u64);
    }

    /// These entries were applied, in a read that started then.
    pub(super) fn count(&self, logged: &[Logged], started: Instant) {
        for Logged { ago, by_command, .. } in logged {
            let count = if *by_command { &self.commands } else { &self.changes };
            count.increment(1);
            self.lag.record(*ago + started.elapsed());
        }
    }

    pub(super) fn report(&self, state: FeedState) {
        // A read that failed once does not end what the read before it established.
        let problems = if state.up { &[][..] } else { &state.problems };
        self.up.set(if state.up { 1.0 } else { 0.0 });
        for (cause, gauge) in &self.degraded {
            let is_cause = problems.iter().any(|problem| problem.cause == *cause);
            gauge.set(if is_cause { 1.0 } else { 0.0 });
        }
        let problems = problems.to_vec();
        let has_looked = state.has_looked || self.state.borrow().has_looked;
        let before = self.state.send_replace(FeedState { problems: problems.clone(), has_looked, ..state });
        for problem in &problems {
            if !before.problems.iter().any(|known| is_same(known, problem)) {
                let (cause, fix) = (problem.cause.name(), problem.fix);
                warn!(cause, fix, "a changed key may be allowed for up to 30 s: {problem}");
            }
        }
        if !before.up && self.state.borrow().up {
            info!("change feed up: a changed key is denied within 1 s");
        }
    }
}

/// Whether the log has named it already. Two failed reads may differ in nothing but the error's text.
fn is_same(one: &Problem, other: &Problem) -> bool {
    one.cause == other.cause && (one.cause == Cause::Unreadable || one.detail == other.detail)
}
