//! The readers of the change log: how they are notified, how they confirm the changes that they applied, and how a
//! command waits for all of them.
//!
//! Postgres itself lists the readers: each has a connection with its name in `pg_stat_activity`, which ends with the
//! reader. A confirmation counts only if it comes from the backend that listens under that name. Only roles that may
//! read the log are readers.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    time::Duration,
};

use super::{PostgresPool, listen::NotificationListener};
use crate::{
    clock,
    revocation::Signals,
    store::{
        SqlValue, StoreError,
        statement::{Deadline, Statement, first_value},
    },
};

/// The readers that were to apply a change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Confirmations {
    /// Those that confirmed it.
    pub dropped: BTreeSet<String>,
    /// Those that listen, and did not confirm it in time.
    pub silent: BTreeSet<String>,
}

/// What the confirmations say about a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmation {
    /// Every reader that listens has applied it.
    Complete,
    /// A reader did not confirm it in time.
    Incomplete,
    /// No reader listens, so nothing is known.
    Unknown,
}

impl Confirmations {
    /// What they say together.
    pub fn state(&self) -> Confirmation {
        if !self.silent.is_empty() {
            Confirmation::Incomplete
        } else if self.dropped.is_empty() {
            Confirmation::Unknown
        } else {
            Confirmation::Complete
        }
    }
}

/// The channel on which the log's trigger notifies readers.
const CHANGED: &str = "keystile_changed";
/// The channel on which readers confirm the changes that they applied.
const CONFIRMED: &str = "keystile_confirmed";

/// How the name of a reader's connection starts.
const APPLICATION: &str = "keystile";

/// How often a waiting command lists the readers.
const LIST_INTERVAL: Duration = Duration::from_millis(200);

/// Maximum number of changes in one confirmation: a payload is limited to 8,000 bytes.
const PER_CONFIRMATION: usize = 300;

impl PostgresPool {
    /// Wakes the feed at each notification, and sends its confirmations, until the connection ends. Returns why.
    pub(crate) async fn listen(&self, log: &str, signals: &Signals) -> StoreError {
        match self.listen_until_error(log, signals).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn listen_until_error(&self, log: &str, signals: &Signals) -> Result<Infallible, StoreError> {
        let mut listener = self.listener(&format!("{APPLICATION}/{log}/{}", reader_name())).await?;
        listener.listen(CHANGED).await?;
        listener.test().await?;
        signals.set_listening(true);
        loop {
            tokio::select! {
                notice = listener.next() => {
                    if notice?.payload == log {
                        signals.wake.notify_one();
                    }
                }
                changes = signals.confirmed() => confirm(&listener, log, &changes).await?,
            }
        }
    }

    /// Logs a change by this statement, which returns its number, and waits until the readers have confirmed it.
    pub(crate) async fn log_and_wait(
        &self,
        log: &str,
        entry: Statement,
        timeout: Duration,
    ) -> Result<Confirmations, StoreError> {
        let mut listener = self.listener(APPLICATION).await?;
        listener.listen(CONFIRMED).await?;
        let change = first_value(self.query(Deadline::Operator, &entry).await?);
        let change = change.ok_or_else(|| StoreError::Unfit("nothing was logged".into()))?;
        let deadline = clock::monotonic() + timeout;
        let mut confirmed = BTreeSet::new();
        loop {
            let readers = self.readers(log).await?;
            let names = |has_confirmed: bool| -> BTreeSet<String> {
                let of = readers.iter().filter(|(backend, _)| confirmed.contains(*backend) == has_confirmed);
                of.map(|(_, name)| name.clone()).collect()
            };
            let silent = names(false);
            if silent.is_empty() || clock::monotonic() >= deadline {
                return Ok(Confirmations { dropped: names(true), silent });
            }
            let next_list = (clock::monotonic() + LIST_INTERVAL).min(deadline);
            while let Ok(notice) = tokio::time::timeout_at(next_list.into(), listener.next()).await {
                let notice = notice?;
                if is_confirmation(&notice.payload, log, &change) {
                    confirmed.insert(notice.backend);
                }
                if readers.keys().all(|backend| confirmed.contains(backend)) {
                    break;
                }
            }
        }
    }

    /// The readers of the log, by the process number of their backends.
    async fn readers(&self, log: &str) -> Result<BTreeMap<i32, String>, StoreError> {
        let sql = "SELECT CAST(pid AS text), application_name FROM pg_stat_activity
            WHERE datname = current_database() AND starts_with(application_name, $1::text)
            AND has_table_privilege(usesysid, CAST(CAST($2::text AS bigint) AS oid), 'SELECT')";
        let prefix = format!("{APPLICATION}/{log}/");
        let statement = Statement::new(sql, [Some(prefix.clone()), Some(log.to_owned())]);
        let rows = self.query(Deadline::Operator, &statement).await?;
        let readers = rows.into_iter().filter_map(|values| {
            let Ok([Some(pid), Some(name)]) = <[SqlValue; 2]>::try_from(values) else { return None };
            Some((pid.parse().ok()?, name.strip_prefix(&prefix)?.to_owned()))
        });
        Ok(readers.collect())
    }
}

/// The name of this process among the readers of a log.
fn reader_name() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host: String = host.chars().filter(char::is_ascii_graphic).filter(|c| *c != '/').collect();
    // Names are cut at 63 bytes. In Kubernetes, the end of a host's name distinguishes pods.
    let host = host.get(host.len().saturating_sub(30)..).unwrap_or_default();
    format!("{host}:{}:{:04x}", std::process::id(), rand::random::<u16>())
}

/// Confirms changes on the connection that listens: a command recognises the reader by it.
async fn confirm(
    listener: &NotificationListener,
    log: &str,
    changes: &BTreeSet<u64>,
) -> Result<(), StoreError> {
    let changes: Vec<_> = changes.iter().map(u64::to_string).collect();
    for part in changes.chunks(PER_CONFIRMATION) {
        listener.notify(CONFIRMED, &format!("{log} {}", part.join(","))).await?;
    }
    Ok(())
}

/// Whether a payload confirms this change of this log.
fn is_confirmation(payload: &str, log: &str, change: &str) -> bool {
    let Some((of, changes)) = payload.split_once(' ') else { return false };
    of == log && changes.split(',').any(|confirmed| confirmed == change)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confirmation_names_one_log_and_its_changes() {
        assert!(is_confirmation("16 41,42", "16", "42"));
        for other in ["16 41,421", "161 42", "17 42", "16", ""] {
            assert!(!is_confirmation(other, "16", "42"), "{other}");
        }
    }

    #[test]
    fn name_of_a_reader_is_never_cut() {
        let name = format!("{APPLICATION}/4294967295/{}", reader_name());
        assert!(name.len() <= 63, "{name}");
    }
}
