//! The readers of the log: how the database notifies them, how they confirm what they applied, and how a command waits
//! for all of them.
//!
//! Postgres itself knows the readers: each has a connection with its name in `pg_stat_activity`, which ends with the
//! reader. A confirmation counts only if it comes from the very backend that listens under that name, and only roles
//! that may read the log are readers.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Backend, Cell, Database, Patience, Signals, Statement, StoreError};
use crate::{clock, credential::Prefix, revocation::verify, store::postgres::Notices};

/// The readers that applied a change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Confirmed {
    /// Those that confirmed it.
    pub dropped: BTreeSet<String>,
    /// Those that listen, and did not confirm it within the time.
    pub silent: BTreeSet<String>,
}

/// The channel on which the log's trigger notifies readers.
const CHANGED: &str = "keystile_changed";
/// The channel on which readers confirm what they applied.
const CONFIRMED: &str = "keystile_confirmed";

/// How the name of a reader's connection starts.
const APPLICATION: &str = "keystile";

/// How often a waiting command asks which readers there are.
const ASK: Duration = Duration::from_millis(200);

/// Maximum number of changes in one confirmation: a payload has room for 8,000 bytes.
const PER_CONFIRMATION: usize = 300;

/// How often a SQLite log is read: nothing notifies its readers.
pub const SQLITE_POLL: Duration = Duration::from_millis(250);

/// The name of this process among the readers of a log.
fn reader_name() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host: String = host.chars().filter(char::is_ascii_graphic).filter(|c| *c != '/').collect();
    // Names are cut at 63 bytes; in Kubernetes the end of a host's name tells pods apart.
    let host = &host[host.len().saturating_sub(30)..];
    format!("{host}:{}:{:04x}", std::process::id(), rand::random::<u16>())
}

impl Database {
    /// Wakes the feed at each notification, and sends what it applied as confirmations, until the connection ends;
    /// returns why. Never returns for SQLite, which does not notify.
    pub(super) async fn listen_to(&self, log: &str, signals: &Signals) -> StoreError {
        let Backend::Postgres(postgres) = self.backend() else { return std::future::pending().await };
        let listened = async {
            let mut notices = postgres.notices(&format!("{APPLICATION}/{log}/{}", reader_name())).await?;
            notices.listen(CHANGED).await?;
            notices.test().await?;
            signals.set_listening(true);
            loop {
                tokio::select! {
                    notice = notices.next() => {
                        if notice?.payload == log {
                            signals.wake.notify_one();
                        }
                    }
                    changes = signals.confirmed() => confirm(&notices, log, &changes).await?,
                }
            }
        };
        let ended: Result<std::convert::Infallible, StoreError> = listened.await;
        match ended {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    /// Makes every reader drop what it holds of a prefix, or everything, and waits until they have.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer, or its log cannot be relied on.
    pub async fn invalidate(
        &self,
        prefix: Option<Prefix>,
        patience: Duration,
    ) -> Result<Confirmed, StoreError> {
        let log = self.sound_log().await?;
        match self.backend() {
            Backend::Postgres(postgres) => {
                let mut notices = postgres.notices(APPLICATION).await?;
                notices.listen(CONFIRMED).await?;
                let change = self.log(prefix, "CAST(xid AS text)").await?;
                self.wait(&mut notices, &log, &change, patience).await
            }
            // The processes that have the file open are not known, but each of them reads it this often.
            Backend::Sqlite(_) => {
                self.log(prefix, "CAST(id AS TEXT)").await?;
                tokio::time::sleep(SQLITE_POLL * 2).await;
                Ok(Confirmed::default())
            }
        }
    }

    /// The name of the log, if its readers can rely on it.
    async fn sound_log(&self) -> Result<String, StoreError> {
        let catalog = self.catalog(Patience::Check).await?;
        if !catalog.has_log() {
            return Err(StoreError::Unfit(
                "the database has no log of changes, by which caches are told; run `keystile migrate`".into(),
            ));
        }
        let reading = self.read_log(&catalog, None).await?;
        match verify(&reading.evidence, None).problems.into_iter().next() {
            Some(problem) => Err(StoreError::Unfit(format!("{problem}; {}", problem.fix).into())),
            None => Ok(reading.log),
        }
    }

    async fn log(&self, prefix: Option<Prefix>, id: &str) -> Result<String, StoreError> {
        let param = self.dialect().param(1, "text");
        let catalog = self.catalog(Patience::Check).await?;
        let log = catalog.relation("keystile_changes");
        let sql = format!("INSERT INTO {log} (prefix, source) VALUES ({param}, 'command') RETURNING {id}");
        let prefix = prefix.map(|prefix| prefix.as_str().to_owned());
        let rows = self.backend().query(Patience::Person, Statement::new(sql, [prefix])).await?;
        rows.into_iter()
            .flatten()
            .flatten()
            .next()
            .ok_or_else(|| StoreError::Unfit("nothing was logged".into()))
    }

    async fn wait(
        &self,
        notices: &mut Notices,
        log: &str,
        change: &str,
        patience: Duration,
    ) -> Result<Confirmed, StoreError> {
        let deadline = clock::monotonic() + patience;
        let mut confirmed = BTreeSet::new();
        loop {
            let readers = self.readers(log).await?;
            let names = |confirmed: &BTreeSet<i32>, is_in: bool| -> BTreeSet<String> {
                let of = readers.iter().filter(|(backend, _)| confirmed.contains(backend) == is_in);
                of.map(|(_, name)| name.clone()).collect()
            };
            let silent = names(&confirmed, false);
            if silent.is_empty() || clock::monotonic() >= deadline {
                return Ok(Confirmed { dropped: names(&confirmed, true), silent });
            }
            let ask = (clock::monotonic() + ASK).min(deadline);
            while let Ok(notice) = tokio::time::timeout_at(ask.into(), notices.next()).await {
                let notice = notice?;
                if is_confirmation(&notice.payload, log, change) {
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
        let named = format!("{APPLICATION}/{log}/");
        let params = [Some(named.clone()), Some(log.to_owned())];
        let rows = self.backend().query(Patience::Person, Statement::new(sql, params)).await?;
        let readers = rows.into_iter().filter_map(|cells| {
            let Ok([Some(pid), Some(name)]) = <[Cell; 2]>::try_from(cells) else { return None };
            Some((pid.parse().ok()?, name.strip_prefix(&named)?.to_owned()))
        });
        Ok(readers.collect())
    }
}

/// Confirms changes on the connection that listens: others recognise it by that.
async fn confirm(notices: &Notices, log: &str, changes: &BTreeSet<u64>) -> Result<(), StoreError> {
    let changes: Vec<_> = changes.iter().map(u64::to_string).collect();
    for some in changes.chunks(PER_CONFIRMATION) {
        notices.notify(CONFIRMED, &format!("{log} {}", some.join(","))).await?;
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
