//! Writes how keys were used: added to what is there, once, whatever becomes of the connection.

use std::{future::Future, time::Duration};

use serde_json::json;

use super::{
    Database, StoreError,
    catalog::Catalog,
    cell,
    database::Operation,
    sql::{Dialect, Patience, Statement},
};
use crate::{config::UsageColumn, usage::Batch};

/// Where the usage of keys is written.
pub trait UsageStore: Send + Sync + 'static {
    /// Writes a batch once. One without rows finds out whether the database takes any.
    fn write_usage(&self, batch: &Batch) -> impl Future<Output = Written> + Send;

    /// Whether a transaction was committed; `None` while nobody knows yet.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer.
    fn was_written(&self, transaction: &str)
    -> impl Future<Output = Result<Option<bool>, StoreError>> + Send;
}

/// The usage columns of `api_keys`. Cheap to clone.
#[derive(Clone)]
pub struct UsageTable {
    database: Database,
    columns: Vec<UsageColumn>,
}

/// What became of something that was to be written once.
#[derive(Debug, Clone)]
pub enum Written {
    /// It stands there.
    Done,
    /// It does not.
    NotDone(StoreError),
    /// The answer was lost; [`UsageStore::was_written`] knows by this transaction.
    Unsure(String, StoreError),
}

/// How fine `last_used_at` is: a key in use is not written for it more often than this, by all sidecars together.
const LAST_USED: Duration = Duration::from_secs(5 * 60);

impl UsageTable {
    /// Writes these columns, as far as the table has them.
    pub fn new(database: Database, columns: &[UsageColumn]) -> Self {
        Self { database, columns: columns.to_vec() }
    }
}

impl UsageStore for UsageTable {
    /// Adds to `total_requests`, and moves `last_used_at` on where it is older than five minutes: whichever of
    /// the two there are, and are to be written.
    async fn write_usage(&self, batch: &Batch) -> Written {
        let catalog = match self.database.catalog(Patience::Check).await {
            Ok(catalog) => catalog,
            Err(error) => return Written::NotDone(error),
        };
        let Some(sql) = self.update(&catalog) else { return Written::Done };
        // In one order, so that two instances do not wait for each other's rows.
        let mut batch: Vec<_> = batch.iter().collect();
        batch.sort_unstable_by_key(|(key, _)| **key);
        let used = batch.into_iter().map(|(key, used)| {
            let last = self.database.dialect().timestamp(cell::write_timestamp(used.last));
            json!({ "id": key.0, "n": used.requests, "last": last })
        });
        let used = serde_json::Value::from_iter(used).to_string();
        self.database.write_once(Statement::new(sql, [Some(used)])).await
    }

    async fn was_written(&self, transaction: &str) -> Result<Option<bool>, StoreError> {
        let sql = "SELECT COALESCE(pg_xact_status(CAST($1::text AS xid8)), 'committed')";
        let statement = Statement::new(sql, [Some(transaction.to_owned())]);
        let rows = self.database.check(Operation::Usage, statement).await?;
        Ok(match rows.into_iter().flatten().flatten().next().as_deref() {
            Some("committed") => Some(true),
            Some("aborted") => Some(false),
            _ => None,
        })
    }
}

impl UsageTable {
    /// The type of a column that is there and is to be written.
    fn kind<'a>(&self, catalog: &'a Catalog, column: UsageColumn) -> Option<&'a str> {
        let kind = catalog.kind("api_keys", column.name());
        kind.filter(|_| self.columns.contains(&column))
    }

    fn update(&self, catalog: &Catalog) -> Option<String> {
        let dialect = self.database.dialect();
        let (id, number, last, rows) = match dialect {
            Dialect::Postgres => (
                "d.id",
                "d.n",
                "d.last",
                "jsonb_to_recordset(CAST($1::text AS jsonb)) AS d (id bigint, n bigint, last text)",
            ),
            Dialect::Sqlite => (
                "json_extract(d.value, '$.id')",
                "json_extract(d.value, '$.n')",
                "json_extract(d.value, '$.last')",
                "json_each(?1) AS d",
            ),
        };
        let mut set = Vec::new();
        let mut is_due = String::new();
        if let Some(kind) = self.kind(catalog, UsageColumn::LastUsedAt) {
            let seconds = LAST_USED.as_secs();
            let (at, is_older) = match dialect {
                Dialect::Postgres => {
                    let at = format!("CAST({last} AS {kind})");
                    (at.clone(), format!("k.last_used_at < {at} - CAST('{seconds} s' AS interval)"))
                }
                Dialect::Sqlite => (
                    last.to_owned(),
                    format!("datetime(k.last_used_at) < datetime({last}, '-{seconds} seconds')"),
                ),
            };
            let is_later = format!("k.last_used_at IS NULL OR {is_older}");
            set.push(format!("last_used_at = CASE WHEN {is_later} THEN {at} ELSE k.last_used_at END"));
            // Without a count, a row that would stay as it is needs no new version.
            is_due = format!(" AND ({is_later})");
        }
        if let Some(kind) = self.kind(catalog, UsageColumn::TotalRequests) {
            let sum = format!("COALESCE(k.total_requests, 0) + {number}");
            // An old column is full at some time; the batch is not to fail for it.
            let sum = if kind == "integer" && dialect == Dialect::Postgres {
                format!("LEAST({sum}, 2147483647)")
            } else {
                sum
            };
            set.push(format!("total_requests = {sum}"));
            is_due.clear();
        }
        let set = set.join(", ");
        (!set.is_empty())
            .then(|| format!("UPDATE api_keys AS k SET {set} FROM {rows} WHERE k.id = {id}{is_due}"))
    }
}
