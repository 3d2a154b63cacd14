//! The log of changes, as the feed needs it: how a database reports its own changes.

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
    /// Reads the entries since the previous read, or all entries that the log still has. Gathers the evidence that the
    /// log is complete. A missing log is a valid result, not an error.
    fn read(&self, since: Option<Since>) -> impl Future<Output = Result<LogRead, LogError>> + Send;

    /// Returns the prefixes of keys whose `updated_at`, or that of their users, is within `window`, each with that
    /// value. Without a log, nothing else is known about changes.
    fn hints(&self, window: Duration)
    -> impl Future<Output = Result<Vec<(Prefix, String)>, LogError>> + Send;

    /// Wakes the reader of this log at each notification of the database, and sends its confirmations. Returns only
    /// when that fails.
    fn listen(&self, log: &str, signals: &Signals) -> impl Future<Output = LogError> + Send;

    /// Deletes the entries that every reader has seen.
    fn prune(&self) -> impl Future<Output = Result<(), LogError>> + Send;

    /// Makes the next read inspect the tables again.
    fn forget_tables(&self);

    /// Closes the connections: they may lead to another server than new connections.
    fn reconnect(&self);

    /// Interval between reads where the database sends no notifications.
    fn poll_interval(&self) -> Duration;
}

/// The end of the previous read.
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
    /// The log was read.
    Read(Box<Reading>),
}

/// One read of the log.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The name of the log among those of its database.
    pub log: String,
    /// The database's report about itself.
    pub evidence: Evidence,
    /// The position of the log. `None` on a standby, whose snapshots are incomplete.
    pub position: Option<Arc<LogPosition>>,
    /// The new entries.
    pub logged: Vec<LoggedChange>,
    /// Whether there were more entries than one read returns.
    pub is_cut: bool,
}

/// An entry of the log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoggedChange {
    /// The key that changed, and the number of the change.
    pub change: Change<Prefix>,
    /// Time since it was logged, by the database's clock.
    pub ago: Duration,
    /// Whether a `keystile` command made the change.
    pub by_command: bool,
}

/// Why the log could not be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// The database does not answer.
    #[error("{0}")]
    Unavailable(Arc<str>),
    /// The database does not support the operation.
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

    /// The listener sets this. It also wakes the feed: entries that were logged earlier caused no notification, so they
    /// are read at once.
    pub fn set_listening(&self, is_listening: bool) {
        self.is_listening.store(is_listening, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Passes applied changes to the listener, which confirms them to the waiting commands.
    pub fn confirm(&self, changes: impl IntoIterator<Item = u64>) {
        if self.is_listening() {
            self.confirmed.lock().extend(changes);
            self.has_confirmed.notify_one();
        }
    }

    /// Waits until there are changes to confirm, and returns them.
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
    /// The keys that changed; `None` when any key may have changed.
    pub fn prefixes(&self) -> Option<Vec<Prefix>> {
        if self.is_cut {
            return None;
        }
        self.logged.iter().map(|logged| logged.change.key).collect()
    }
}
