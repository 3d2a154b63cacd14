//! Who reads the log: they are woken by it, say what they have dropped, and can be waited for.
//!
//! Postgres itself knows who listens: each reader's connection has its name in `pg_stat_activity`, and is gone
//! from there when the reader is. So nobody keeps a list.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{LogState, TABLE};
use crate::{
    credential::Prefix,
    store::{
        Database, StoreError,
        postgres::Notices,
        sql::{Backend, Dialect, Patience, Statement},
    },
};

/// A reader of a log, by the name that the database knows it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    log: String,
    name: String,
}

/// Who dropped what was to be dropped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Confirmed {
    /// Said that they did.
    pub dropped: BTreeSet<String>,
    /// Live, and said nothing within the time.
    pub silent: BTreeSet<String>,
}

/// Said by triggers when something was logged.
const CHANGED: &str = "keystile_changed";
/// Said by readers when they have dropped it.
const CONFIRMED: &str = "keystile_confirmed";

/// What a reader's connection is called before its own name.
const APPLICATION: &str = "keystile";

/// How often it is looked who still lives, while others wait for them.
const LOOK: Duration = Duration::from_millis(200);

/// Changes that one confirmation names: a payload has room for 8,000 bytes.
const NAMED: usize = 300;

/// How often a reader without notifications looks at a SQLite file.
pub const SQLITE_LOOK: Duration = Duration::from_millis(250);

impl Reader {
    /// This process as a reader of that log.
    pub fn new(log: &str) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let host: String = host.chars().filter(char::is_ascii_graphic).filter(|c| *c != '/').collect();
        // Names are cut at 63 bytes; in Kubernetes the end of a host's name tells pods apart.
        let host = &host[host.len().saturating_sub(30)..];
        let name = format!("{host}:{}:{:04x}", std::process::id(), rand::random::<u16>());
        Self { log: log.to_owned(), name }
    }

    /// Without the log that it reads.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn application(&self) -> String {
        format!("{APPLICATION}/{}/{}", self.log, self.name)
    }
}

impl Database {
    /// Wakes `wake` whenever something is logged, and says by `listening` whether it would, until it can hear no
    /// longer; returns why. Never returns for SQLite, where nobody calls.
    pub async fn listen(&self, reader: &Reader, listening: &AtomicBool, wake: &Notify) -> StoreError {
        let Backend::Postgres(postgres) = self.backend() else { return std::future::pending().await };
        let heard = async {
            let mut notices = postgres.notices(&reader.application()).await?;
            notices.listen(CHANGED).await?;
            notices.test().await?;
            listening.store(true, Ordering::Relaxed);
            loop {
                // What was logged before is read now: nobody was listening then.
                wake.notify_one();
                while notices.next().await?.1 != reader.log {}
            }
        };
        let ended: Result<std::convert::Infallible, StoreError> = heard.await;
        listening.store(false, Ordering::Relaxed);
        wake.notify_one();
        match ended {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    /// Says that these changes were heard of, and what was older is dropped.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer.
    pub async fn confirm(&self, reader: &Reader, changes: &BTreeSet<u64>) -> Result<(), StoreError> {
        if self.dialect() == Dialect::Sqlite {
            return Ok(());
        }
        let changes: Vec<_> = changes.iter().map(u64::to_string).collect();
        for some in changes.chunks(NAMED) {
            let payload = format!("{}/{} {}", reader.log, reader.name, some.join(","));
            let sql = format!("SELECT CAST(pg_notify('{CONFIRMED}', $1::text) AS text)");
            self.check(super::Operation::Changes, Statement::new(sql, [Some(payload)])).await?;
        }
        Ok(())
    }

    /// Makes every reader drop what it holds of a prefix, or everything, and waits until they have.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer, or has no log.
    pub async fn invalidate(
        &self,
        prefix: Option<Prefix>,
        patience: Duration,
    ) -> Result<Confirmed, StoreError> {
        let LogState::Whole(log) = self.log_state().await? else {
            return Err(StoreError::Unfit(
                "the database has no log of changes, by which caches are told; run `keystile migrate`".into(),
            ));
        };
        match self.backend() {
            Backend::Postgres(postgres) => {
                let mut notices = postgres.notices(APPLICATION).await?;
                notices.listen(CONFIRMED).await?;
                let change = self.log(prefix, "CAST(xid AS text)").await?;
                self.wait(&mut notices, &log, &change, patience).await
            }
            // Nobody knows who has the file open, but all of them look at it this often.
            Backend::Sqlite(_) => {
                self.log(prefix, "CAST(id AS TEXT)").await?;
                tokio::time::sleep(SQLITE_LOOK * 2).await;
                Ok(Confirmed::default())
            }
        }
    }

    async fn log(&self, prefix: Option<Prefix>, id: &str) -> Result<String, StoreError> {
        let param = self.dialect().param(1, "text");
        let sql = format!("INSERT INTO {TABLE} (prefix, source) VALUES ({param}, 'command') RETURNING {id}");
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
        let deadline = Instant::now() + patience;
        let mut dropped = BTreeSet::new();
        loop {
            let live = self.readers(log).await?;
            let silent: BTreeSet<_> = live.difference(&dropped).cloned().collect();
            if silent.is_empty() || Instant::now() >= deadline {
                return Ok(Confirmed { dropped, silent });
            }
            let look = (Instant::now() + LOOK).min(deadline);
            while let Ok(heard) = tokio::time::timeout_at(look.into(), notices.next()).await {
                dropped.extend(confirmation(&heard?.1, log, change));
                if silent.is_subset(&dropped) {
                    break;
                }
            }
        }
    }

    /// Who reads the log at this moment, as the database sees it.
    async fn readers(&self, log: &str) -> Result<BTreeSet<String>, StoreError> {
        let sql = "SELECT application_name FROM pg_stat_activity
            WHERE datname = current_database() AND starts_with(application_name, $1::text)";
        let named = format!("{APPLICATION}/{log}/");
        let rows = self.backend().query(Patience::Person, Statement::new(sql, [Some(named.clone())])).await?;
        let names = rows.into_iter().flatten().flatten();
        Ok(names.filter_map(|name| Some(name.strip_prefix(&named)?.to_owned())).collect())
    }
}

/// Who says so, if the payload says that this change of this log was heard of.
fn confirmation(payload: &str, log: &str, change: &str) -> Option<String> {
    let (reader, changes) = payload.split_once(' ')?;
    let name = reader.strip_prefix(log)?.strip_prefix('/')?;
    changes.split(',').any(|heard| heard == change).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confirmation_is_of_one_log_and_names_its_changes() {
        let told = |payload| confirmation(payload, "16", "42");
        assert_eq!(told("16/pod:1:ab 41,42").as_deref(), Some("pod:1:ab"));
        for other in ["16/pod:1:ab 41,421", "161/pod:1:ab 42", "17/pod:1:ab 42", "16/pod:1:ab", ""] {
            assert_eq!(told(other), None, "{other}");
        }
    }

    #[test]
    fn name_of_a_reader_is_never_cut() {
        let reader = Reader::new("4294967295");
        assert!(reader.application().len() <= 63, "{}", reader.application());
    }
}
