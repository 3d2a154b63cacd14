//! The log of changes, `keystile_changes`, which triggers write in the transactions that change keys.
//!
//! The log is the truth about what changed; a notification only says that it is worth reading. A read starts where the
//! previous one ended, at a [`LogPosition`], and returns what was committed since: exactly that, however long a
//! transaction was open and in whichever order they were committed.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use sha2::{Digest as _, Sha256};

use super::{
    Cell, Database, StoreError,
    catalog::Catalog,
    database::Operation,
    postgres,
    sql::{Backend, Dialect, Patience, Statement},
    sqlite,
    watched::watched,
};
use crate::{
    credential::Prefix,
    revocation::{
        CAPACITY, Change, ChangeLog, Evidence, LogError, LogPosition, LogRead, Logged, MEMORY, Reading,
        Signals, Since, Snapshot,
    },
};

mod readers;

pub use readers::{Confirmed, SQLITE_POLL};

/// Maximum number of entries of one read, so that a change of very many keys is read within a call's deadline. Past it,
/// everything is dropped, so no one needs to know which keys changed.
pub const MAX_ENTRIES: usize = CAPACITY;

/// How often a Postgres log is read where the database does not notify.
const POLL: Duration = Duration::from_millis(400);

/// How often a read is repeated when the tables change during it.
const TRIES: u32 = 3;

/// An entry as it stands in the log.
struct Entry {
    subject: Subject,
    id: u64,
    ago: Duration,
    by_command: bool,
}

/// Whom an entry concerns.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Subject {
    Everything,
    Prefix(Prefix),
    User(i64),
    Key(i64),
}

/// The position that a statement returned as `instance/snapshot`. The epoch stands for the instance, which is a server
/// since its start or a file since it was restored, and for its tables and triggers.
pub(super) fn position(text: &str, catalog: &Catalog) -> Option<LogPosition> {
    let (instance, snapshot) = text.split_once('/')?;
    let snapshot: Snapshot = snapshot.parse().ok()?;
    let digest = Sha256::digest(format!("{instance}/{}", catalog.fingerprint));
    let epoch = digest.first_chunk().map(|first| u64::from_be_bytes(*first))?;
    Some(LogPosition::new(epoch, snapshot))
}

impl ChangeLog for Database {
    async fn read(&self, since: Option<Since>) -> Result<LogRead, LogError> {
        for _ in 0..TRIES {
            let catalog = self.catalog(Patience::Check).await?;
            if !catalog.has_log() {
                return Ok(LogRead::Missing);
            }
            let reading = self.read_log(&catalog, since.as_ref()).await;
            match reading {
                Ok(reading) if reading.evidence.tables == catalog.fingerprint => {
                    return Ok(LogRead::Read(Box::new(reading)));
                }
                // The triggers were compared with the tables of before.
                Ok(_) => self.forget_tables(),
                Err(error) => {
                    self.forget_tables();
                    return Err(error.into());
                }
            }
        }
        Err(LogError::Unavailable("its tables are being changed".into()))
    }

    async fn hints(&self, window: Duration) -> Result<Vec<(Prefix, String)>, LogError> {
        Ok(self.updated_within(window).await?)
    }

    async fn listen(&self, log: &str, signals: &Signals) -> LogError {
        self.listen_to(log, signals).await.into()
    }

    async fn prune(&self) -> Result<(), LogError> {
        Ok(self.prune_changes().await?)
    }

    fn forget_tables(&self) {
        Database::forget_tables(self);
    }

    fn reconnect(&self) {
        self.backend().reconnect();
    }

    fn poll_interval(&self) -> Duration {
        if self.is_file() { SQLITE_POLL } else { POLL }
    }
}

impl Database {
    /// Reads the log of these tables.
    pub(super) async fn read_log(
        &self,
        catalog: &Catalog,
        since: Option<&Since>,
    ) -> Result<Reading, StoreError> {
        let tables = watched(catalog);
        let snapshot = since.map(|since| since.position.snapshot());
        let anchor = since.and_then(|since| since.anchor.clone());
        let limit = MAX_ENTRIES + 1;
        let statement = match self.dialect() {
            Dialect::Postgres => {
                // The first transaction number that is not the system's own.
                let since = snapshot.map_or_else(|| "3:3:".to_owned(), Snapshot::to_string);
                Statement::new(postgres::change_log::read(catalog, &tables, limit), [Some(since), anchor])
            }
            Dialect::Sqlite => {
                let since = snapshot.map_or(1, Snapshot::next).to_string();
                let triggers = serde_json::to_string(&sqlite::triggers::triggers(catalog, &tables));
                let params = [Some(since), anchor, triggers.ok()];
                Statement::new(sqlite::change_log::read(limit), params)
            }
        };
        let identity = self.backend().identity();
        let mut rows = self.check(Operation::Changes, statement).await?;
        if self.backend().identity() != identity {
            return Err(StoreError::Unavailable("its file was replaced during a read".into()));
        }
        let evidence = rows.iter().position(|cells| cells.first().is_some_and(is("evidence")));
        let evidence = evidence.map(|at| rows.swap_remove(at));
        let Some([_, Some(evidence), text, Some(log), ..]) = evidence.as_deref() else {
            return Err(StoreError::Unfit("the log of changes gives no evidence of itself".into()));
        };
        let mut evidence: Evidence = serde_json::from_str(evidence)
            .map_err(|error| StoreError::Unfit(format!("evidence of the log: {error}").into()))?;
        evidence.identity.push_str(&identity);
        let position = text.as_deref().and_then(|text| position(text, catalog)).map(Arc::new);
        let mut is_cut = rows.len() > MAX_ENTRIES;
        let entries: Vec<_> = rows.iter().take(MAX_ENTRIES).filter_map(|cells| entry(cells)).collect();
        let logged = if is_cut {
            entries.iter().filter_map(Entry::as_logged).collect()
        } else {
            self.resolve(catalog, entries).await?
        };
        is_cut |= logged.len() > MAX_ENTRIES;
        Ok(Reading { log: log.clone(), evidence, position, logged, is_cut })
    }

    /// Looks up the keys of the users and keys that entries name. After the entries: a key that was committed before
    /// the change is found, and one that is committed later is read with the change.
    async fn resolve(&self, catalog: &Catalog, entries: Vec<Entry>) -> Result<Vec<Logged>, StoreError> {
        let subjects: HashSet<_> = entries.iter().map(|entry| entry.subject).collect();
        let users = subjects.iter().filter_map(|subject| match subject {
            Subject::User(id) => Some(*id),
            _ => None,
        });
        let keys = subjects.iter().filter_map(|subject| match subject {
            Subject::Key(id) => Some(*id),
            _ => None,
        });
        let of_users = self.prefixes_by(catalog, "user_id", users.collect()).await?;
        let of_keys = self.prefixes_by(catalog, "id", keys.collect()).await?;
        let none = Vec::new();
        let mut logged = Vec::with_capacity(entries.len());
        for entry in entries {
            let prefixes = match entry.subject {
                Subject::Everything | Subject::Prefix(_) => {
                    logged.extend(entry.as_logged());
                    continue;
                }
                Subject::User(id) => of_users.get(&id).unwrap_or(&none),
                Subject::Key(id) => of_keys.get(&id).unwrap_or(&none),
            };
            logged.extend(prefixes.iter().map(|prefix| entry.logged(Some(*prefix))));
            if logged.len() > MAX_ENTRIES {
                break;
            }
        }
        Ok(logged)
    }

    /// The prefixes of the keys with one of these numbers in a column.
    async fn prefixes_by(
        &self,
        catalog: &Catalog,
        column: &str,
        ids: Vec<i64>,
    ) -> Result<HashMap<i64, Vec<Prefix>>, StoreError> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let ids = ids.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        let name = catalog.name("api_keys", column);
        let (condition, param) = match self.dialect() {
            Dialect::Postgres => {
                // An index on the column serves every integer type.
                let kind = catalog.kind("api_keys", column).unwrap_or("bigint");
                let kind = if matches!(kind, "smallint" | "integer") { "bigint" } else { kind };
                (format!("k.{name} = ANY (CAST($1::text AS {kind}[]))"), format!("{{{ids}}}"))
            }
            Dialect::Sqlite => (format!("k.{name} IN (SELECT value FROM json_each(?1))"), format!("[{ids}]")),
        };
        let sql = format!(
            "SELECT CAST(k.{name} AS text), CAST(k.{} AS text) FROM {} k WHERE {condition} LIMIT {}",
            catalog.name("api_keys", "key_prefix"),
            catalog.relation("api_keys"),
            MAX_ENTRIES + 1
        );
        let rows = self.check(Operation::Changes, Statement::new(sql, [Some(param)])).await?;
        let mut prefixes: HashMap<i64, Vec<Prefix>> = HashMap::new();
        for cells in rows {
            let Ok([Some(id), Some(prefix)]) = <[Cell; 2]>::try_from(cells) else { continue };
            if let (Ok(id), Ok(prefix)) = (super::cell::integer(&id), Prefix::parse(&prefix)) {
                prefixes.entry(id).or_default().push(prefix);
            }
        }
        Ok(prefixes)
    }

    /// Prefixes of keys whose rows, or whose users' rows, say that they were changed within `window`: all that is known
    /// where there is no log.
    async fn updated_within(&self, window: Duration) -> Result<Vec<(Prefix, String)>, StoreError> {
        let catalog = &self.catalog(Patience::Check).await?;
        let seconds = window.as_secs();
        let recent = |table: &str, column: &str| match self.dialect() {
            Dialect::Postgres => {
                let recent = format!("now() - CAST('{seconds} s' AS interval)");
                let has_zone =
                    catalog.kind(table, "updated_at").is_some_and(|kind| kind.ends_with("with time zone"));
                if has_zone {
                    format!("{column} > {recent}")
                } else {
                    format!("{column} > ({recent}) AT TIME ZONE 'UTC'")
                }
            }
            Dialect::Sqlite => format!("datetime({column}) > datetime('now', '-{seconds} seconds')"),
        };
        let (keys, users) = (catalog.relation("api_keys"), catalog.relation("users"));
        let branches: Vec<_> = [("api_keys", "k"), ("users", "u")]
            .into_iter()
            .filter(|(table, _)| catalog.has(table, "updated_at"))
            .map(|(table, alias)| {
                format!(
                    "SELECT k.key_prefix, CAST({alias}.updated_at AS text) FROM {keys} k
                    JOIN {users} u ON u.id = k.user_id WHERE {}",
                    recent(table, &format!("{alias}.updated_at"))
                )
            })
            .collect();
        if branches.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.check(Operation::Changes, Statement::new(branches.join(" UNION "), [])).await?;
        let updated = rows.into_iter().filter_map(|cells| {
            let [prefix, updated_at] = <[Cell; 2]>::try_from(cells).ok()?;
            Some((Prefix::parse(&prefix?).ok()?, updated_at?))
        });
        Ok(updated.collect())
    }

    /// Deletes what every reader has seen. An entry's age counts from when it was first seen while pruning, since its
    /// transaction may have been open for long.
    async fn prune_changes(&self) -> Result<(), StoreError> {
        let catalog = self.catalog(Patience::Check).await?;
        let seconds = MEMORY.as_secs();
        let statements = match self.dialect() {
            Dialect::Postgres => postgres::change_log::prune(&catalog, seconds),
            Dialect::Sqlite => sqlite::change_log::prune(seconds),
        };
        // Not on the connection that look-ups leave to the feed.
        let _permit = self.permit().await;
        for sql in statements {
            self.backend().query(Patience::Person, Statement::new(sql, [])).await?;
        }
        Ok(())
    }
}

impl Entry {
    fn logged(&self, key: Option<Prefix>) -> Logged {
        Logged { change: Change { key, id: self.id }, ago: self.ago, by_command: self.by_command }
    }

    /// The same for the feed, unless its keys have to be looked up.
    fn as_logged(&self) -> Option<Logged> {
        match self.subject {
            Subject::Everything => Some(self.logged(None)),
            Subject::Prefix(prefix) => Some(self.logged(Some(prefix))),
            Subject::User(_) | Subject::Key(_) => None,
        }
    }
}

impl From<StoreError> for LogError {
    fn from(error: StoreError) -> Self {
        let text = error.to_string().into();
        if matches!(error, StoreError::Unfit(_)) { Self::Unsuitable(text) } else { Self::Unavailable(text) }
    }
}

fn is(text: &str) -> impl Fn(&Cell) -> bool {
    move |cell| cell.as_deref() == Some(text)
}

/// An entry; none where it names a prefix that no credential has.
fn entry(cells: &[Cell]) -> Option<Entry> {
    let [_, prefix, user, key, id, ago, source] = cells else { return None };
    let number = |cell: &Cell| cell.as_deref().map(str::parse::<i64>);
    let subject = match (prefix, number(user), number(key)) {
        (Some(prefix), _, _) => Subject::Prefix(Prefix::parse(prefix).ok()?),
        (None, _, Some(Ok(key))) => Subject::Key(key),
        (None, Some(Ok(user)), None) => Subject::User(user),
        _ => Subject::Everything,
    };
    let ago = ago.as_deref().and_then(|ago| ago.parse().ok()).unwrap_or(0.0);
    Some(Entry {
        subject,
        id: id.as_deref()?.parse().ok()?,
        ago: Duration::try_from_secs_f64(ago).unwrap_or_default(),
        by_command: source.as_deref() == Some("command"),
    })
}
