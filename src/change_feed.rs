//! Hears of changes from the database, and makes them count in every tier at once.
//!
//! The log of changes is read every 750 ms at least, and at once when the database calls. What it says is
//! dropped from memory, and barred at the [`Fence`] from coming back out of a reading that is older. While the
//! log cannot be read, what is older than [`WORST_CASE`](crate::fence::WORST_CASE) is read anew.

use std::{
    collections::{BTreeSet, HashSet},
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use metrics::{Counter, Gauge, Histogram};
use serde::Serialize;
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
};
use tracing::{debug, info, warn};

use crate::{
    credential::Prefix,
    fence::{Fence, MEMORY, News, Snapshot},
    metrics::Metrics,
    store::{Changes, Database, LogState, Reader, SQLITE_LOOK, StoreError},
};

/// Follows the changes of one database.
pub struct ChangeFeed {
    database: Database,
    fence: Arc<Fence<Prefix>>,
    forget: Box<Forget>,
    sight: Sight,
    looked_for_log: Option<Instant>,
    wake: Arc<Notify>,
    listening: Arc<AtomicBool>,
    listener: Option<AbortHandle>,
    state: watch::Sender<FeedState>,
    counts: Counts,
}

/// How changes are heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FeedState {
    /// By what.
    pub source: Source,
    /// Whether it is heard of them within a second.
    pub up: bool,
    /// Whether the database calls; it is looked more often where it does not.
    pub listening: bool,
    /// Whether what changed before the start is known, or cannot be.
    #[serde(skip)]
    pub has_looked: bool,
}

/// What tells of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Nothing yet.
    Nothing,
    /// The log that triggers write.
    Log,
    /// The columns `updated_at`, where there is no log.
    UpdatedAt,
}

/// Drops these prefixes; everything, when `None`.
type Forget = dyn Fn(Option<&[Prefix]>) + Send + Sync;

/// What has been seen so far.
enum Sight {
    Nothing,
    Log { reader: Reader, log: String, position: Arc<Snapshot>, read_at: Instant },
    Hints(HashSet<(Prefix, String)>),
}

struct Counts {
    up: Gauge,
    changes: Counter,
    commands: Counter,
    gaps: Counter,
    hints: Counter,
    lag: Histogram,
}

/// Within which a change is heard of, while the feed is up: it is not, once the log has not been read for so long.
const PROMISE: Duration = Duration::from_secs(1);
/// How often the log is read where the database calls: to notice when its calls no longer come through.
const LISTENING: Duration = Duration::from_millis(750);
/// How often where it does not.
const LOOKING: Duration = Duration::from_millis(400);
/// How soon after a failure.
const RETRY: Duration = Duration::from_millis(100);
/// How often it is looked whether there is a log.
const LOOK_FOR_LOG: Duration = Duration::from_secs(5);
/// How long until a lost connection listens again, and until one that hears nothing is tried again.
const LISTEN_AGAIN: Duration = Duration::from_millis(500);
const LISTEN_LATER: Duration = Duration::from_secs(30);
/// How far back changes by `updated_at` are looked for: clocks differ, and transactions take their time.
const WINDOW: Duration = Duration::from_secs(30);
/// Failures in a row after which nobody waits for the first look.
const TRIES: u32 = 3;
/// How often the log is pruned.
const PRUNE: Duration = Duration::from_secs(300);

impl ChangeFeed {
    /// A feed that has heard nothing yet. What changes is told to `forget`, with the fence closed.
    pub fn new(
        database: Database,
        fence: Arc<Fence<Prefix>>,
        forget: impl Fn(Option<&[Prefix]>) + Send + Sync + 'static,
        metrics: &Metrics,
    ) -> Self {
        let source = |source| metrics.invalidations(source);
        let counts = Counts {
            up: metrics.change_feed_up(),
            changes: source("change"),
            commands: source("command"),
            gaps: source("gap"),
            hints: source("hint"),
            lag: metrics.revocation_lag(),
        };
        counts.up.set(0.0);
        let state = FeedState { source: Source::Nothing, up: false, listening: false, has_looked: false };
        Self {
            database,
            fence,
            forget: Box::new(forget),
            sight: Sight::Nothing,
            looked_for_log: None,
            wake: Arc::default(),
            listening: Arc::default(),
            listener: None,
            state: watch::Sender::new(state),
            counts,
        }
    }

    /// How changes are heard of, now and later.
    pub fn state(&self) -> watch::Receiver<FeedState> {
        self.state.subscribe()
    }

    /// Follows the changes for as long as it is let.
    pub async fn run(mut self) -> Infallible {
        let mut failures = 0_u32;
        let mut pruned = Instant::now();
        loop {
            match self.look().await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    debug!(%error, failures, "changes could not be read");
                }
            }
            self.tell(failures);
            if pruned.elapsed() > PRUNE && failures == 0 {
                pruned = Instant::now();
                self.prune();
            }
            let pace = match failures {
                0 if self.listening.load(Ordering::Relaxed) => LISTENING,
                0 if self.database.is_file() => SQLITE_LOOK,
                0 | TRIES.. => LOOKING,
                _ => RETRY,
            };
            let _ = tokio::time::timeout(pace, self.wake.notified()).await;
        }
    }

    async fn look(&mut self) -> Result<(), StoreError> {
        if self.looked_for_log.is_none_or(|at| at.elapsed() > LOOK_FOR_LOG) {
            // A new file has its tables, and its log, from the first time that anybody asks for them.
            self.database.ping().await?;
            let log = self.database.log_state().await?;
            self.turn_to(log).await?;
            self.looked_for_log = Some(Instant::now());
        }
        match &self.sight {
            Sight::Log { position, read_at, .. } if read_at.elapsed() < MEMORY / 2 => {
                let read_at = Instant::now();
                let changes = self.database.changes(Some(position)).await?;
                self.hear(changes, read_at).await
            }
            // Away for so long that the log may have been pruned.
            Sight::Log { .. } => self.start_over().await,
            Sight::Hints(_) => self.look_for_hints().await,
            Sight::Nothing => Ok(()),
        }
    }

    /// Reads the log that is there, or does without.
    async fn turn_to(&mut self, found: LogState) -> Result<(), StoreError> {
        match (found, &self.sight) {
            (LogState::Whole(found), Sight::Log { log, .. }) if found == *log => Ok(()),
            (LogState::Whole(log), sight) => {
                // What was read before there was this log says nothing about what it has seen.
                let is_first = matches!(sight, Sight::Nothing);
                self.database.forget_tables();
                let read_at = Instant::now();
                let changes = self.database.changes(None).await?;
                let position = Arc::clone(&changes.position);
                let news = if is_first { changes.news() } else { News::Gap(changes.position) };
                self.drop_everything(news);
                let reader = Reader::new(&log);
                info!(reader = reader.name(), "reading the log of changes");
                self.listen(reader.clone());
                self.sight = Sight::Log { reader, log, position, read_at };
                Ok(())
            }
            (LogState::Missing, Sight::Hints(_)) => Ok(()),
            (LogState::Missing, _) => {
                warn!(
                    "the database has no log of changes: a changed key is noticed within 30 s at the latest; \
                     `keystile migrate` makes one"
                );
                self.listener.take().inspect(AbortHandle::abort);
                self.listening.store(false, Ordering::Relaxed);
                self.sight = Sight::Hints(HashSet::new());
                Ok(())
            }
        }
    }

    async fn hear(&mut self, changes: Changes, now: Instant) -> Result<(), StoreError> {
        let Sight::Log { reader, position, read_at, .. } = &mut self.sight else { return Ok(()) };
        *position = Arc::clone(&changes.position);
        *read_at = now;
        if changes.logged.is_empty() && !changes.is_cut {
            return Ok(());
        }
        let prefixes = changes.prefixes();
        if prefixes.is_none() {
            // Perhaps the tables were altered.
            self.database.forget_tables();
        }
        self.fence.hear(changes.news(), now, || (self.forget)(prefixes.as_deref()));
        for logged in &changes.logged {
            let count = if logged.by_command { &self.counts.commands } else { &self.counts.changes };
            count.increment(1);
            self.counts.lag.record(logged.ago + now.elapsed());
        }
        let ids: BTreeSet<_> = changes.logged.iter().map(|logged| logged.change.id).collect();
        // Whoever waits for it hears nothing, and says so; nothing else depends on it.
        if let Err(error) = self.database.confirm(reader, &ids).await {
            debug!(%error, "not confirmed");
        }
        Ok(())
    }

    async fn start_over(&mut self) -> Result<(), StoreError> {
        let now = Instant::now();
        let changes = self.database.changes(None).await?;
        let Sight::Log { position, read_at, .. } = &mut self.sight else { return Ok(()) };
        *position = Arc::clone(&changes.position);
        *read_at = now;
        self.counts.gaps.increment(1);
        self.drop_everything(News::Gap(changes.position));
        Ok(())
    }

    fn drop_everything(&self, news: News<Prefix>) {
        self.fence.hear(news, Instant::now(), || (self.forget)(None));
    }

    async fn look_for_hints(&mut self) -> Result<(), StoreError> {
        let updated: HashSet<_> = self.database.updated_within(WINDOW).await?.into_iter().collect();
        let Sight::Hints(known) = &mut self.sight else { return Ok(()) };
        let news: Vec<_> = updated.difference(known).map(|(prefix, _)| *prefix).collect();
        *known = updated;
        if !news.is_empty() {
            self.counts.hints.increment(news.len() as u64);
            self.fence.hear(News::Hint(news.clone()), Instant::now(), || (self.forget)(Some(&news)));
        }
        Ok(())
    }

    /// Lets the database call whenever there is something to read.
    fn listen(&mut self, reader: Reader) {
        let (database, wake, listening) =
            (self.database.clone(), Arc::clone(&self.wake), Arc::clone(&self.listening));
        let listener = tokio::spawn(async move {
            let mut told = false;
            loop {
                let pause = match database.listen(&reader, &listening, &wake).await {
                    StoreError::Unfit(problem) => {
                        if !std::mem::replace(&mut told, true) {
                            warn!(%problem, "the log of changes is looked at every {} ms", LOOKING.as_millis());
                        }
                        LISTEN_LATER
                    }
                    error => {
                        debug!(%error, "not listening");
                        LISTEN_AGAIN
                    }
                };
                tokio::time::sleep(pause).await;
            }
        });
        self.listener.replace(listener.abort_handle()).inspect(AbortHandle::abort);
    }

    fn tell(&self, failures: u32) {
        let (source, up) = match &self.sight {
            Sight::Nothing => (Source::Nothing, false),
            Sight::Log { read_at, .. } => (Source::Log, read_at.elapsed() < PROMISE),
            Sight::Hints(_) => (Source::UpdatedAt, false),
        };
        let listening = self.listening.load(Ordering::Relaxed);
        let has_looked = self.state.borrow().has_looked || failures == 0 || failures >= TRIES;
        let state = FeedState { source, up, listening, has_looked };
        self.fence.set_up(up);
        self.counts.up.set(if up { 1.0 } else { 0.0 });
        let before = self.state.send_replace(state);
        if before.up != up {
            info!(up, ?source, "change feed");
        }
    }

    /// In a task of its own: reading goes on meanwhile.
    fn prune(&self) {
        let database = self.database.clone();
        if !matches!(self.sight, Sight::Log { .. }) {
            return;
        }
        tokio::spawn(async move {
            if let Err(error) = database.prune_changes().await {
                warn!(%error, "the log of changes was not pruned, and grows");
            }
        });
    }
}

impl Drop for ChangeFeed {
    fn drop(&mut self) {
        self.listener.take().inspect(AbortHandle::abort);
    }
}
