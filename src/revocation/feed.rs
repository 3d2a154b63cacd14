//! Reads the log of changes, and applies each change in every cache tier at once.
//!
//! The log is read every 500 ms, and immediately when the database sends a notification. Each read verifies the
//! conditions that the log depends on. The feed is up for one second after a read that found no problem, and no longer.

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

/// Reads the changes of one database.
pub struct ChangeFeed<L> {
    log: L,
    fence: Arc<Fence<Prefix>>,
    forget: Box<Forget>,
    position: FeedPosition,
    /// The conditions that failed at the last read.
    problems: Vec<Problem>,
    /// Why the attempts after that read failed.
    failure: Option<Problem>,
    /// Whether the database sent notifications at the last read.
    notifies: bool,
    signals: Arc<Signals>,
    listener: Option<AbortHandle>,
    status: Arc<Status>,
}

/// Drops the cached records of these prefixes; `None` drops all cached records.
type Forget = dyn Fn(Option<&[Prefix]>) + Send + Sync;

/// The current position of the feed.
enum FeedPosition {
    /// There was no read yet.
    Start,
    Log {
        log: String,
        position: Arc<LogPosition>,
        known: Known,
        read_at: Instant,
    },
    /// There is no usable log. The columns `updated_at` give hints.
    Unlogged {
        hints: HashSet<(Prefix, String)>,
        looked_at: Instant,
    },
}

/// How long the feed is up after a read. Each change is applied within this time.
const PROMISE: Duration = Duration::from_secs(1);
/// Interval between reads while the database sends notifications. It limits the delay after a lost notification.
const LISTENING: Duration = Duration::from_millis(500);
/// Minimum time between two reads, so that many notifications do not cause as many reads.
const PAUSE: Duration = Duration::from_millis(20);
/// Delay before the next read after a failure.
const RETRY: Duration = Duration::from_millis(100);
/// Interval between checks whether the database has a log.
const LOOK_FOR_LOG: Duration = Duration::from_secs(5);
/// Delay before the feed listens again: `LISTEN_AGAIN` after a lost connection, `LISTEN_LATER` where the database
/// cannot send notifications.
const LISTEN_AGAIN: Duration = Duration::from_millis(500);
const LISTEN_LATER: Duration = Duration::from_secs(30);
/// How far back `updated_at` is checked: clocks differ, and transactions take time.
const WINDOW: Duration = Duration::from_secs(30);
/// Number of failed reads in a row after which startup no longer waits for the first read.
const TRIES: u32 = 3;
/// How often the log is pruned.
const PRUNE: Duration = Duration::from_secs(300);

impl<L: ChangeLog> ChangeFeed<L> {
    /// A feed before its first read. While the fence is locked, the feed passes the changed prefixes to `forget`.
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

    /// Reports the state of the feed and its changes.
    pub fn state(&self) -> watch::Receiver<FeedState> {
        self.status.subscribe()
    }

    /// Reads the changes until the feed is dropped.
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
                    debug!(%error, failures, "the log of changes could not be read");
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
            // There was no read yet, or the last read is so old that the log may have been pruned since.
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

    /// Applies one read. `is_new`: the read contains only the entries after the previous read.
    async fn apply(&mut self, reading: Reading, is_new: bool, started: Instant) -> Result<(), LogError> {
        let known = match &self.position {
            FeedPosition::Log { known, .. } => Some(known),
            FeedPosition::Start | FeedPosition::Unlogged { .. } => None,
        };
        let verdict = verify(&reading.evidence, known);
        self.status.has_read(&reading.logged);
        let Some(position) = reading.position.clone() else { return self.go_without(verdict.problems).await };
        let is_first = matches!(self.position, FeedPosition::Start);
        // While a condition failed, changes may have been missed.
        let is_recovered = verdict.problems.is_empty()
            && self.problems.iter().any(|problem| problem.cause != Cause::Identity);
        // Only the first read, or a read that continues the previous one, tells which keys changed.
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
            // The first read has no earlier read to compare with: everything that was cached before it is dropped.
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

    /// Reads `updated_at`, since there is no usable log.
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

    /// Subscribes to the database's notifications of new entries.
    fn listen(&mut self, log: String) {
        let (database, signals) = (self.log.clone(), Arc::clone(&self.signals));
        let listener = tokio::spawn(async move {
            let mut warned = false;
            loop {
                let pause = match database.listen(&log, &signals).await {
                    LogError::Unsuitable(problem) => {
                        if !std::mem::replace(&mut warned, true) {
                            warn!(%problem, "no notifications from the database: the log is polled");
                        }
                        LISTEN_LATER
                    }
                    error @ LogError::Unavailable(_) => {
                        debug!(%error, "not listening for notifications of changes");
                        LISTEN_AGAIN
                    }
                };
                signals.set_listening(false);
                tokio::time::sleep(pause).await;
            }
        });
        self.listener.replace(listener.abort_handle()).inspect(AbortHandle::abort);
    }

    /// The time until which the last read keeps the feed up.
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
        let (source, epoch, newest) = match &self.position {
            FeedPosition::Start => (Source::Nothing, None, None),
            FeedPosition::Log { position, known, .. } => {
                (Source::Log, Some(position.epoch()), known.anchor.clone())
            }
            FeedPosition::Unlogged { .. } => (Source::UpdatedAt, None, None),
        };
        let up_until = self.up_until();
        self.fence.set_state(up_until, epoch);
        self.status.report(FeedState {
            source,
            up: up_until.is_some(),
            listening: self.is_notified(),
            problems: self.failure.iter().chain(&self.problems).cloned().collect(),
            has_looked: failures == 0 || failures >= TRIES,
            newest,
        });
    }

    /// Prunes the log in a separate task, so that reads continue.
    fn prune(&self) {
        let log = self.log.clone();
        if !matches!(self.position, FeedPosition::Log { .. }) {
            return;
        }
        tokio::spawn(async move {
            if let Err(error) = log.prune().await {
                warn!(%error, "the log of changes could not be pruned and grows");
            }
        });
    }
}

impl<L> Drop for ChangeFeed<L> {
    fn drop(&mut self) {
        self.listener.take().inspect(AbortHandle::abort);
    }
}
