//! The log of changes, as the feed needs it: what a database must be able to say about its own changes.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{conditions::Evidence, fence::Change, log_position::LogPosition};
use crate::credential::Prefix;

/// A database that logs its changes.
pub trait ChangeLog: Clone + Send + Sync + 'static {
    /// Reads what was logged since the previous read, or all that the log still has, and gathers the evidence that
    /// the log is complete. A log that is absent is an answer, not an error.
    fn read(&self, since: Option<Since>) -> impl Future<Output = Result<LogRead, LogError>> + Send;

    /// Prefixes of keys whose `updated_at`, or that of their users, lies within `window`; with that value. This is all
    /// that is known where there is no log.
    fn hints(&self, window: Duration)
    -> impl Future<Output = Result<Vec<(Prefix, String)>, LogError>> + Send;

    /// Wakes the reader of this log for as long as the database notifies it, and sends its confirmations. Returns
    /// only when that fails.
    fn listen(&self, log: &str, signals: &Signals) -> impl Future<Output = LogError> + Send;

    /// Deletes entries that every reader has seen.
    fn prune(&self) -> impl Future<Output = Result<(), LogError>> + Send;

    /// Looks at the tables again at the next read.
    fn forget_tables(&self);

    /// Closes the connections, since they may lead to another server than new ones.
    fn reconnect(&self);

    /// How often the log is read where the database does not notify.
    fn poll_interval(&self) -> Duration;
}

/// Where the previous read ended.
#[derive(Debug, Clone)]
pub struct Since {
    /// Its position.
    pub position: Arc<LogPosition>,
    /// The newest entry that it saw.
    pub anchor: Option<String>,
}

/// The outcome of a read.
#[derive(Debug, Clone)]
pub enum LogRead {
    /// There is no log.
    Missing,
    /// There is one.
    Read(Box<Reading>),
}

/// One read of the log.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Names the log among those of its database.
    pub log: String,
    /// What the database says about itself.
    pub evidence: Evidence,
    /// The position of the log. None on a standby, whose snapshots are incomplete.
    pub position: Option<Arc<LogPosition>>,
    /// The new entries.
    pub logged: Vec<Logged>,
    /// Whether there were more entries than one read returns.
    pub is_cut: bool,
}

/// An entry of the log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Logged {
    /// What changed, and the number of the change.
    pub change: Change<Prefix>,
    /// How long ago it was logged, by the database's clock.
    pub ago: Duration,
    /// Whether a command asked for it.
    pub by_command: bool,
}

/// Why the log could not be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// The database does not answer.
    #[error("{0}")]
    Unavailable(Arc<str>),
    /// The database answers that it cannot do this.
    #[error("{0}")]
    Unsuitable(Arc<str>),
}

/// Signals between a feed and its listener.
#[derive(Debug, Default)]
pub struct Signals {
    /// Wakes the feed.
    pub wake: Notify,
    is_listening: AtomicBool,
    confirmed: Mutex<BTreeSet<u64>>,
    has_confirmed: Notify,
}

impl Signals {
    /// Whether the database notifies the feed of new entries.
    pub fn is_listening(&self) -> bool {
        self.is_listening.load(Ordering::Relaxed)
    }

    /// Set by the listener. What was logged before is read at once: no one was listening then.
    pub fn set_listening(&self, is_listening: bool) {
        self.is_listening.store(is_listening, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Hands changes that were applied to the listener, which confirms them to those who wait.
    pub fn confirm(&self, changes: impl IntoIterator<Item = u64>) {
        if self.is_listening() {
            self.confirmed.lock().extend(changes);
            self.has_confirmed.notify_one();
        }
    }

    /// Changes to confirm, as soon as there are any.
    pub async fn confirmed(&self) -> BTreeSet<u64> {
        loop {
            let confirmed = std::mem::take(&mut *self.confirmed.lock());
            if !confirmed.is_empty() {
                return confirmed;
            }
            self.has_confirmed.notified().await;
        }
    }
}

impl Reading {
    /// Which keys changed; none when it may be any of them.
    pub fn prefixes(&self) -> Option<Vec<Prefix>> {
        if self.is_cut {
            return None;
        }
        self.logged.iter().map(|logged| logged.change.key).collect()
    }
}
