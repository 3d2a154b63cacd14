//! Follows the log of changes, and applies each change in every cache tier at once.
//!
//! The log is read every 500 ms, and at once when the database notifies. Each read verifies what the log rests on.
//! The feed is up for one second after a read that found everything in order, and not longer.

use std::{
    collections::HashSet,
    convert::Infallible,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::AbortHandle, time::sleep_until};
use tracing::{debug, warn};

use super::{
    conditions::{Cause, Known, Problem, verify},
    fence::{Changes, Fence, MEMORY},
    log::{ChangeLog, LogError, LogRead, Reading, Signals, Since},
    log_position::LogPosition,
    status::{FeedState, Source, Status},
};
use crate::{clock, credential::Prefix, metrics::Metrics};

/// Follows the changes of one database.
pub struct ChangeFeed<L> {
    log: L,
    fence: Arc<Fence<Prefix>>,
    forget: Box<Forget>,
    position: FeedPosition,
    /// What the last read found not to hold.
    problems: Vec<Problem>,
    /// Why there was no read since then.
    failure: Option<Problem>,
    /// Whether the last read found that the database notifies readers.
    notifies: bool,
    signals: Arc<Signals>,
    listener: Option<AbortHandle>,
    status: Arc<Status>,
}

/// Drops these prefixes; everything, when `None`.
type Forget = dyn Fn(Option<&[Prefix]>) + Send + Sync;

/// Where the feed stands.
enum FeedPosition {
    /// Nothing was read yet.
    Start,
    Log {
        log: String,
        position: Arc<LogPosition>,
        known: Known,
        read_at: Instant,
    },
    /// There is no log to rely on: `updated_at` gives hints.
    Unlogged {
        hints: HashSet<(Prefix, String)>,
        looked_at: Instant,
    },
}

/// How long the feed is up after a read. A change is applied within this time.
const PROMISE: Duration = Duration::from_secs(1);
/// How often the log is read where the database notifies. A lost notification is noticed by that.
const LISTENING: Duration = Duration::from_millis(500);
/// The shortest time between two reads: a flood of notifications does not become a flood of reads.
const PAUSE: Duration = Duration::from_millis(20);
/// How soon after a failure.
const RETRY: Duration = Duration::from_millis(100);
/// How often it is looked whether there is a log.
const LOOK_FOR_LOG: Duration = Duration::from_secs(5);
/// How long until a lost connection listens again, and until one without notifications is tried again.
const LISTEN_AGAIN: Duration = Duration::from_millis(500);
const LISTEN_LATER: Duration = Duration::from_secs(30);
/// How far back `updated_at` is looked at: clocks differ, and transactions take their time.
const WINDOW: Duration = Duration::from_secs(30);
/// Failed reads in a row after which the start no longer waits for the first one.
const TRIES: u32 = 3;
/// How often the log is pruned.
const PRUNE: Duration = Duration::from_secs(300);

impl<L: ChangeLog> ChangeFeed<L> {
    /// A feed that has read nothing yet. Changes are given to `forget` while the fence is closed.
    pub fn new(
        log: L,
        fence: Arc<Fence<Prefix>>,
        forget: impl Fn(Option<&[Prefix]>) + Send + Sync + 'static,
        metrics: &Metrics,
    ) -> Self {
        Self {
            log,
            fence,
            forget: Box::new(forget),
            position: FeedPosition::Start,
            problems: Vec::new(),
            failure: None,
            notifies: false,
            signals: Arc::default(),
            listener: None,
            status: Arc::new(Status::new(metrics)),
        }
    }

    /// The state of the feed, now and later.
    pub fn state(&self) -> watch::Receiver<FeedState> {
        self.status.subscribe()
    }

    /// Follows the changes until it is dropped.
    pub async fn run(mut self) -> Infallible {
        let status = Arc::clone(&self.status);
        let mut failures = 0_u32;
        let mut pruned = clock::monotonic();
        loop {
            let up_until = self.up_until();
            let outcome = {
                let mut step = pin!(self.step());
                let lapse = async {
                    match up_until {
                        Some(until) => sleep_until(until.into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    outcome = &mut step => outcome,
                    () = lapse => {
                        status.lapse();
                        step.await
                    }
                }
            };
            match outcome {
                Ok(()) => {
                    failures = 0;
                    self.failure = None;
                }
                Err(error) => {
                    failures += 1;
                    debug!(%error, failures, "the log of changes was not read");
                    self.failure = Some(Cause::Unreadable.with(error.to_string()));
                }
            }
            self.report(failures);
            if pruned.elapsed() > PRUNE && failures == 0 {
                pruned = clock::monotonic();
                self.prune();
            }
            tokio::time::sleep(PAUSE).await;
            let _ = tokio::time::timeout(self.pace(failures), self.signals.wake.notified()).await;
        }
    }

    async fn step(&mut self) -> Result<(), LogError> {
        let since = match &self.position {
            FeedPosition::Log { position, known, read_at, .. } if read_at.elapsed() < MEMORY / 2 => {
                Some(Since { position: Arc::clone(position), anchor: known.anchor.clone() })
            }
            // Nothing was read yet, or so long ago that the log may have been pruned.
            _ => None,
        };
        if let FeedPosition::Unlogged { looked_at, .. } = &mut self.position
            && looked_at.elapsed() > LOOK_FOR_LOG
        {
            *looked_at = clock::monotonic();
            self.log.forget_tables();
        }
        let is_new = since.is_some();
        let started = clock::monotonic();
        match self.log.read(since).await? {
            LogRead::Missing => self.go_without(vec![Cause::LogMissing.with("")]).await,
            LogRead::Read(reading) => self.apply(*reading, is_new, started).await,
        }
    }

    /// Applies one read. `is_new`: it has only what came after the previous one.
    async fn apply(&mut self, reading: Reading, is_new: bool, started: Instant) -> Result<(), LogError> {
        let known = match &self.position {
            FeedPosition::Log { known, .. } => Some(known),
            FeedPosition::Start | FeedPosition::Unlogged { .. } => None,
        };
        let verdict = verify(&reading.evidence, known);
        let Some(position) = reading.position.clone() else { return self.go_without(verdict.problems).await };
        let is_first = matches!(self.position, FeedPosition::Start);
        // While a condition did not hold, changes may have been missed.
        let is_recovered = verdict.problems.is_empty()
            && self.problems.iter().any(|problem| problem.cause != Cause::Identity);
        // Only the first read of all, or one that follows the previous read, says which keys changed.
        let is_gap = verdict.is_gap || is_recovered || !(is_new || is_first);
        let prefixes = if is_gap { None } else { reading.prefixes() };
        let changes = match &prefixes {
            _ if is_gap || reading.is_cut => Changes::Everything(Arc::clone(&position)),
            _ => Changes::Logged(
                reading.logged.iter().map(|logged| logged.change).collect(),
                Arc::clone(&position),
            ),
        };
        if is_first || is_gap || reading.is_cut || !reading.logged.is_empty() {
            // What was cached before the first read was compared with nothing.
            let prefixes = prefixes.as_deref().filter(|_| !is_first);
            self.fence.apply(changes, clock::monotonic(), || (self.forget)(prefixes));
        }
        if is_gap {
            self.status.gap();
        } else if is_new {
            self.status.count(&reading.logged, started);
        }
        self.signals.confirm(reading.logged.iter().map(|logged| logged.change.id));
        let is_other = verdict.problems.iter().any(|problem| problem.cause == Cause::Identity);
        let is_same_log = matches!(&self.position, FeedPosition::Log { log, .. } if *log == reading.log);
        if is_other {
            self.log.reconnect();
        }
        if is_other || !is_same_log {
            self.listen(reading.log.clone());
        }
        self.problems = verdict.problems;
        self.notifies = reading.evidence.notifies;
        let known = reading.evidence.known();
        self.position = FeedPosition::Log { log: reading.log, position, known, read_at: started };
        Ok(())
    }

    /// Follows `updated_at`, since there is no log to rely on.
    async fn go_without(&mut self, problems: Vec<Problem>) -> Result<(), LogError> {
        self.problems = problems;
        if !matches!(self.position, FeedPosition::Unlogged { .. }) {
            if matches!(self.position, FeedPosition::Log { .. }) {
                self.fence.apply(Changes::EverythingUnlogged, clock::monotonic(), || (self.forget)(None));
                self.status.gap();
            }
            self.listener.take().inspect(AbortHandle::abort);
            self.signals.set_listening(false);
            self.position = FeedPosition::Unlogged { hints: HashSet::new(), looked_at: clock::monotonic() };
        }
        let updated: HashSet<_> = self.log.hints(WINDOW).await?.into_iter().collect();
        let FeedPosition::Unlogged { hints, .. } = &mut self.position else { return Ok(()) };
        let new: Vec<_> = updated.difference(hints).map(|(prefix, _)| *prefix).collect();
        *hints = updated;
        if !new.is_empty() {
            self.status.hints(new.len());
            self.fence.apply(Changes::Hints(new.clone()), clock::monotonic(), || (self.forget)(Some(&new)));
        }
        Ok(())
    }

    /// Lets the database notify this feed of new entries.
    fn listen(&mut self, log: String) {
        let (database, signals) = (self.log.clone(), Arc::clone(&self.signals));
        let listener = tokio::spawn(async move {
            let mut warned = false;
            loop {
                let pause = match database.listen(&log, &signals).await {
                    LogError::Unsuitable(problem) => {
                        if !std::mem::replace(&mut warned, true) {
                            warn!(%problem, "no notifications of changes: the log is polled");
                        }
                        LISTEN_LATER
                    }
                    error @ LogError::Unavailable(_) => {
                        debug!(%error, "not listening");
                        LISTEN_AGAIN
                    }
                };
                signals.set_listening(false);
                tokio::time::sleep(pause).await;
            }
        });
        self.listener.replace(listener.abort_handle()).inspect(AbortHandle::abort);
    }

    /// Until when the last read keeps the feed up.
    fn up_until(&self) -> Option<Instant> {
        let FeedPosition::Log { read_at, .. } = &self.position else { return None };
        let until = *read_at + PROMISE;
        (self.problems.is_empty() && clock::monotonic() < until).then_some(until)
    }

    fn is_notified(&self) -> bool {
        self.notifies && self.signals.is_listening()
    }

    fn pace(&self, failures: u32) -> Duration {
        match failures {
            0 if self.is_notified() => LISTENING,
            0 | TRIES.. => self.log.poll_interval(),
            _ => RETRY,
        }
    }

    fn report(&self, failures: u32) {
        let (source, epoch) = match &self.position {
            FeedPosition::Start => (Source::Nothing, None),
            FeedPosition::Log { position, .. } => (Source::Log, Some(position.epoch())),
            FeedPosition::Unlogged { .. } => (Source::UpdatedAt, None),
        };
        let up_until = self.up_until();
        self.fence.set_state(up_until, epoch);
        self.status.report(FeedState {
            source,
            up: up_until.is_some(),
            listening: self.is_notified(),
            problems: self.failure.iter().chain(&self.problems).cloned().collect(),
            has_looked: failures == 0 || failures >= TRIES,
        });
    }

    /// In a task of its own: reads continue during it.
    fn prune(&self) {
        let log = self.log.clone();
        if !matches!(self.position, FeedPosition::Log { .. }) {
            return;
        }
        tokio::spawn(async move {
            if let Err(error) = log.prune().await {
                warn!(%error, "the log of changes was not pruned, and grows");
            }
        });
    }
}

impl<L> Drop for ChangeFeed<L> {
    fn drop(&mut self) {
        self.listener.take().inspect(AbortHandle::abort);
    }
}
