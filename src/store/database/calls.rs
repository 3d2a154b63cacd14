//! The calls of the database: their guards, their durations, and what Keystile's own reads say about an outage.

use std::time::{Duration, Instant};

use metrics::Histogram;
use parking_lot::Mutex;
use tokio::sync::SemaphorePermit;

use crate::{
    clock,
    metrics::Metrics,
    resilience::{CAPACITY, DependencyGuard},
    store::StoreError,
};

/// The calls of one database.
pub(super) struct Calls {
    /// For checks and their consequences.
    guard: DependencyGuard,
    /// For reads that must continue while there are too many checks: of changes, and to probe the database. Callers'
    /// look-ups leave one connection to them.
    own_guard: DependencyGuard,
    own_reads: Mutex<OwnReads>,
    durations: Durations,
}

/// The kind of a guarded call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Operation {
    Records,
    Changes,
    Usage,
    Ping,
}

/// The state of Keystile's own reads, which no caller makes.
#[derive(Default)]
struct OwnReads {
    /// Whether the last probe failed.
    ping_failed: bool,
    /// Whether the last read of the change log failed.
    changes_failed: bool,
    /// Whether the change log could be read again, and look-ups have not been tried since.
    changes_recovered: bool,
    /// When a probe was last answered.
    answered_at: Option<Instant>,
}

/// `keystile_store_duration_seconds`, by operation.
struct Durations {
    records: Histogram,
    changes: Histogram,
    usage: Histogram,
    ping: Histogram,
}

impl Calls {
    /// `store` is the name of the database in metrics.
    pub(super) fn new(store: &'static str, timeout: Duration, connections: u32, metrics: &Metrics) -> Self {
        let duration = |operation| metrics.store_duration(store, operation);
        // One connection remains for Keystile's own reads, where there is more than one.
        let concurrency = (connections as usize - 1).max(1);
        Self {
            guard: DependencyGuard::new(store, timeout, concurrency, metrics),
            own_guard: DependencyGuard::new(store, timeout, CAPACITY, metrics),
            own_reads: Mutex::default(),
            durations: Durations {
                records: duration("records"),
                changes: duration("changes"),
                usage: duration("usage"),
                ping: duration("ping"),
            },
        }
    }

    /// Makes a call, under the guard of its kind.
    pub(super) async fn run<T>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let (guard, duration) = match operation {
            Operation::Records => (&self.guard, &self.durations.records),
            Operation::Usage => (&self.guard, &self.durations.usage),
            Operation::Changes => (&self.own_guard, &self.durations.changes),
            Operation::Ping => (&self.own_guard, &self.durations.ping),
        };
        let result = guard.call(duration, work).await;
        match operation {
            Operation::Records | Operation::Usage => {}
            Operation::Changes => {
                let mut own_reads = self.own_reads.lock();
                own_reads.changes_recovered |= own_reads.changes_failed && result.is_ok();
                own_reads.changes_failed = result.is_err();
            }
            Operation::Ping => {
                let mut own_reads = self.own_reads.lock();
                own_reads.ping_failed = result.is_err();
                if result.is_ok() {
                    own_reads.answered_at = Some(clock::monotonic());
                }
            }
        }
        result
    }

    /// Whether the change log can be read again since the last call of this function. The next look-up is then made,
    /// although look-ups have failed.
    pub(super) fn take_recovery(&self) -> bool {
        let has_recovered = std::mem::take(&mut self.own_reads.lock().changes_recovered);
        if has_recovered {
            self.guard.end_pause();
        }
        has_recovered
    }

    /// A place among the look-ups, for a statement that must not take a connection from them.
    pub(super) async fn permit(&self) -> SemaphorePermit<'_> {
        self.guard.permit().await
    }

    /// Records the duration of a write that began at `started`, without a guard.
    pub(super) fn record_write(&self, started: Instant) {
        self.durations.usage.record(started.elapsed());
    }

    pub(super) fn free_capacity(&self) -> usize {
        self.guard.free_capacity()
    }

    /// How many calls wait for a place.
    pub(super) fn waiting(&self) -> usize {
        self.guard.waiting()
    }

    /// Whether the last probe failed.
    pub(super) fn ping_failed(&self) -> bool {
        self.own_reads.lock().ping_failed
    }

    /// Whether a read of Keystile's own failed last.
    pub(super) fn is_lost(&self) -> bool {
        let own_reads = self.own_reads.lock();
        own_reads.ping_failed || own_reads.changes_failed
    }

    /// Whether a probe was answered after `since`.
    pub(super) fn was_answered_after(&self, since: Instant) -> bool {
        self.own_reads.lock().answered_at.is_some_and(|at| at > since)
    }
}
