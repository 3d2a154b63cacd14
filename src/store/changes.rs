//! The log of changes, `keystile_changes`, which triggers write in the transactions that change keys.
//!
//! The log is the truth about what changed; a notification only says that it is worth reading. Whoever reads
//! it remembers the [`Snapshot`] that it read it at, and the next time gets what was committed since: exactly
//! that, however long a transaction was open and in whichever order they were committed.

use std::{sync::Arc, time::Duration};

use super::{
    Cell, Database, StoreError,
    catalog::Catalog,
    database::Operation,
    migrate,
    sql::{Dialect, Patience, Statement},
};
use crate::{
    credential::Prefix,
    fence::{CAPACITY, Change, MEMORY, News, Snapshot},
};

mod listeners;

pub use listeners::{Confirmed, Reader, SQLITE_LOOK};

/// What the log says.
#[derive(Debug, Clone)]
pub struct Changes {
    /// Where the log stood when it was read.
    pub position: Arc<Snapshot>,
    /// What was logged since the last reading.
    pub logged: Vec<Logged>,
    /// Whether there was more, which nobody will read: anything may have changed.
    pub is_cut: bool,
}

/// An entry of the log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Logged {
    /// What changed, and by which transaction.
    pub change: Change<Prefix>,
    /// How long ago that was said, by the database's clock.
    pub ago: Duration,
    /// Whether somebody asked for it by `keystile invalidate`.
    pub by_command: bool,
}

/// Whether the log can be relied on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogState {
    /// Every change is in it. Names the log among those of this database.
    Whole(String),
    /// It is not there, or nothing writes it.
    Missing,
}

pub(crate) const TABLE: &str = "keystile_changes";
/// The trigger that every watched table has.
pub(crate) const TRIGGER: &str = "keystile_changed";

/// Entries that one reading gets at the most, so that a change of everything, however large, is heard of within a
/// call's deadline. Beyond what the fence keeps apart, everything is dropped: which keys changed is no matter then.
pub const MOST: usize = CAPACITY;

/// An expression for which changes a statement has seen.
pub(crate) fn position(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Postgres => "CAST(pg_current_snapshot() AS text)",
        // The sequence outlives the rows that are pruned.
        Dialect::Sqlite => {
            "(SELECT printf('%d:%d:', n, n) FROM (SELECT 1 + COALESCE(MAX(seq), 0) AS n
                FROM sqlite_sequence WHERE name = 'keystile_changes'))"
        }
    }
}

/// A position before every change.
fn beginning(dialect: Dialect) -> &'static str {
    match dialect {
        // The first transaction that is anybody's own.
        Dialect::Postgres => "3:3:",
        Dialect::Sqlite => "1:1:",
    }
}

impl Database {
    /// What was logged since `since`, or all that the log still has.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer.
    pub async fn changes(&self, since: Option<&Snapshot>) -> Result<Changes, StoreError> {
        let position = position(self.dialect());
        let sql = match self.dialect() {
            Dialect::Postgres => format!(
                "SELECT {position}, c.prefix, CAST(c.xid AS text),
                    CAST(extract(epoch FROM clock_timestamp() - c.changed_at) AS text), c.source
                FROM (SELECT CAST($1::text AS pg_snapshot) AS since) s LEFT JOIN keystile_changes c
                ON c.xid >= pg_snapshot_xmin(s.since) AND NOT pg_visible_in_snapshot(c.xid, s.since)
                LIMIT {MOST} + 1"
            ),
            Dialect::Sqlite => format!(
                "SELECT {position}, c.prefix, CAST(c.id AS TEXT),
                    CAST((julianday('now') - julianday(c.changed_at)) * 86400 AS TEXT), c.source
                FROM (SELECT CAST(?1 AS INTEGER) AS since) s LEFT JOIN keystile_changes c ON c.id >= s.since
                LIMIT {MOST} + 1"
            ),
        };
        let since = since.map_or_else(|| beginning(self.dialect()).to_owned(), Snapshot::to_string);
        let rows = self.check(Operation::Changes, Statement::new(sql, [Some(since)])).await?;
        let position = rows.first().and_then(|cells| cells.first()?.as_deref()?.parse().ok());
        let position =
            position.ok_or_else(|| StoreError::Unfit("the log of changes has no position".into()))?;
        Ok(Changes {
            position: Arc::new(position),
            logged: rows.iter().take(MOST).filter_map(|cells| logged(cells)).collect(),
            is_cut: rows.len() > MOST,
        })
    }

    /// Whether there is a log, and all the triggers that write it.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer.
    pub async fn log_state(&self) -> Result<LogState, StoreError> {
        let catalog = self.catalog(Patience::Check).await?;
        self.log_state_of(&catalog).await
    }

    pub(super) async fn log_state_of(&self, catalog: &Catalog) -> Result<LogState, StoreError> {
        let needed = migrate::triggers(catalog, self.dialect());
        let needed = needed.iter().map(|(table, trigger)| format!("('{table}', '{trigger}')"));
        let needed = needed.collect::<Vec<_>>().join(", ");
        let sql = match self.dialect() {
            Dialect::Postgres => format!(
                "SELECT CAST(l.oid AS text) FROM (SELECT CAST(to_regclass('{TABLE}') AS oid) AS oid) l
                WHERE l.oid IS NOT NULL AND NOT EXISTS (
                    SELECT 1 FROM (VALUES {needed}) AS n (relation, name) WHERE NOT EXISTS (
                        SELECT 1 FROM pg_trigger t WHERE t.tgrelid = to_regclass(n.relation)
                        AND t.tgname = n.name AND t.tgenabled = 'A'))"
            ),
            Dialect::Sqlite => format!(
                "WITH needed (relation, name) AS (VALUES {needed})
                SELECT name FROM sqlite_schema WHERE type = 'table' AND name = '{TABLE}' AND NOT EXISTS (
                    SELECT 1 FROM needed n WHERE NOT EXISTS (
                        SELECT 1 FROM sqlite_schema t WHERE t.type = 'trigger'
                        AND t.tbl_name = n.relation AND t.name = n.name))"
            ),
        };
        let rows = self.check(Operation::Changes, Statement::new(sql, [])).await?;
        let name = rows.into_iter().next().and_then(|cells| cells.into_iter().next()?);
        Ok(name.map_or(LogState::Missing, LogState::Whole))
    }

    /// Prefixes of keys whose rows, or whose users' rows, say that they were changed within `window`: all that
    /// can be known where there is no log.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer.
    pub async fn updated_within(&self, window: Duration) -> Result<Vec<(Prefix, String)>, StoreError> {
        let catalog = &self.catalog(Patience::Check).await?;
        let seconds = window.as_secs();
        let recent = |column: &str| match self.dialect() {
            Dialect::Postgres => {
                format!("{column} > (now() AT TIME ZONE 'UTC') - CAST('{seconds} s' AS interval)")
            }
            Dialect::Sqlite => format!("datetime({column}) > datetime('now', '-{seconds} seconds')"),
        };
        let branches: Vec<_> = [("api_keys", "k"), ("users", "u")]
            .into_iter()
            .filter(|(table, _)| catalog.has(table, "updated_at"))
            .map(|(_, alias)| {
                format!(
                    "SELECT k.key_prefix, CAST({alias}.updated_at AS text) FROM api_keys k
                    JOIN users u ON u.id = k.user_id WHERE {}",
                    recent(&format!("{alias}.updated_at"))
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

    /// Deletes what everybody has read. An entry's age counts from when it was first seen here, since its
    /// transaction may have been open for long.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer, or does not allow it.
    pub async fn prune_changes(&self) -> Result<(), StoreError> {
        let seconds = MEMORY.as_secs();
        let statements: &[String] = &match self.dialect() {
            Dialect::Postgres => [
                format!(
                    "DELETE FROM {TABLE} WHERE seen_at < clock_timestamp() - CAST('{seconds} s' AS interval)"
                ),
                format!("UPDATE {TABLE} SET seen_at = clock_timestamp() WHERE seen_at IS NULL"),
            ],
            Dialect::Sqlite => [
                format!("DELETE FROM {TABLE} WHERE seen_at < datetime('now', '-{seconds} seconds')"),
                format!("UPDATE {TABLE} SET seen_at = datetime('now') WHERE seen_at IS NULL"),
            ],
        };
        // Not on the connection that look-ups leave to the feed.
        let _turn = self.turn().await;
        for sql in statements {
            self.backend().query(Patience::Person, Statement::new(sql.as_str(), [])).await?;
        }
        Ok(())
    }
}

impl Changes {
    /// Which keys changed; `None` when it may be any, or somebody said that it is all of them.
    pub fn prefixes(&self) -> Option<Vec<Prefix>> {
        if self.is_cut {
            return None;
        }
        self.logged.iter().map(|logged| logged.change.key).collect()
    }

    /// The same for the fence.
    pub fn news(&self) -> News<Prefix> {
        let position = Arc::clone(&self.position);
        match self.is_cut {
            true => News::Gap(position),
            false => News::Log(self.logged.iter().map(|logged| logged.change).collect(), position),
        }
    }
}

/// An entry; none where nothing was logged, or a prefix that no credential has.
fn logged(cells: &[Cell]) -> Option<Logged> {
    let [_, prefix, id, ago, source] = cells else { return None };
    let id = id.as_deref()?.parse().ok()?;
    let key = match prefix {
        None => None,
        Some(prefix) => Some(Prefix::parse(prefix).ok()?),
    };
    let ago = ago.as_deref().and_then(|ago| ago.parse().ok()).unwrap_or(0.0);
    let ago = Duration::try_from_secs_f64(ago).unwrap_or_default();
    let by_command = source.as_deref() == Some("command");
    Some(Logged { change: Change { key, id }, ago, by_command })
}
