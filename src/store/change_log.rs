//! The change log, `keystile_changes`, which triggers write in the transactions that change keys.
//!
//! The log is authoritative. A notification only says that there is something to read. A read starts where the
//! previous one ended, at a [`LogPosition`](crate::revocation::LogPosition), and returns exactly what was committed
//! since, however long a transaction was open and in whichever order transactions were committed.

use std::{sync::Arc, time::Duration};

use super::{
    Database, SqlValue, StoreError,
    database::calls::Operation,
    postgres::Confirmations,
    schema::{CHANGES, Schema},
    statement::{Deadline, Statement},
    watched_tables::watched_tables,
};
use crate::{
    credential::Prefix,
    revocation::{ChangeLog, Evidence, LogError, LogRead, MEMORY, Reading, Signals, Since, verify},
};

mod entry;
mod resolve;

use entry::LogEntry;

pub use entry::MAX_ENTRIES;

/// How often a read is repeated when the tables change during it.
const TRIES: u32 = 3;

impl ChangeLog for Database {
    async fn read(&self, since: Option<Since>) -> Result<LogRead, LogError> {
        for _ in 0..TRIES {
            let schema = self.schema(Deadline::Check).await?;
            if !schema.has_log() {
                return Ok(LogRead::Missing);
            }
            let reading = self.read_log(&schema, since.as_ref()).await;
            match reading {
                Ok(reading) if reading.evidence.tables == schema.fingerprint => {
                    self.resume_look_ups().await;
                    return Ok(LogRead::Read(Box::new(reading)));
                }
                // The triggers were compared with tables that have changed since.
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
        self.backend().listen(log, signals).await.into()
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
        self.backend().poll_interval()
    }
}

impl Database {
    /// Makes every reader drop what it has cached for a prefix, or everything, and waits until they have.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer, or its log is not reliable.
    pub async fn invalidate(
        &self,
        prefix: Option<Prefix>,
        timeout: Duration,
    ) -> Result<Confirmations, StoreError> {
        let log = self.verified_log().await?;
        let schema = self.schema(Deadline::Check).await?;
        let sql = format!(
            "INSERT INTO {} (prefix, source) VALUES ({}, 'command') RETURNING {}",
            schema.relation(CHANGES),
            self.statements().param(1, "text"),
            self.statements().entry_id()
        );
        let entry = Statement::new(sql, [prefix.map(|prefix| prefix.as_str().to_owned())]);
        self.backend().log_and_wait(&log, entry, timeout).await
    }

    /// The name of the log, if it is reliable.
    async fn verified_log(&self) -> Result<String, StoreError> {
        let schema = self.schema(Deadline::Check).await?;
        if !schema.has_log() {
            return Err(StoreError::Unfit(
                "the database has no log of changes, which caches need; run `keystile migrate`".into(),
            ));
        }
        let reading = self.read_log(&schema, None).await?;
        match verify(&reading.evidence, None).problems.into_iter().next() {
            Some(problem) => Err(StoreError::Unfit(format!("{problem}; {}", problem.fix).into())),
            None => Ok(reading.log),
        }
    }

    /// The evidence that the log of these tables is complete, without its entries.
    pub(super) async fn log_evidence(&self, schema: &Schema) -> Result<Evidence, StoreError> {
        let statement = self.statements().read_log(schema, &watched_tables(schema), None, 0);
        let rows = self.backend().query(Deadline::Operator, statement).await?;
        match rows.first().map(Vec::as_slice) {
            Some([_, Some(evidence), ..]) => parse_evidence(evidence),
            _ => Err(no_evidence()),
        }
    }

    /// Reads the log of these tables.
    pub(super) async fn read_log(
        &self,
        schema: &Schema,
        since: Option<&Since>,
    ) -> Result<Reading, StoreError> {
        let statement = self.statements().read_log(schema, &watched_tables(schema), since, MAX_ENTRIES + 1);
        let identity = self.backend().identity();
        let mut rows = self.guarded_query(Operation::Changes, statement).await?;
        if self.backend().identity() != identity {
            return Err(StoreError::Unavailable("its file was replaced during a read".into()));
        }
        let is_evidence = |value: &SqlValue| value.as_deref() == Some("evidence");
        let evidence = rows.iter().position(|values| values.first().is_some_and(is_evidence));
        let evidence = evidence.map(|at| rows.swap_remove(at));
        let Some([_, Some(evidence), position, Some(log), ..]) = evidence.as_deref() else {
            return Err(no_evidence());
        };
        let mut evidence = parse_evidence(evidence)?;
        evidence.identity.push_str(&identity);
        let position = position.as_deref().and_then(|text| schema.log_position(text)).map(Arc::new);
        let mut is_cut = rows.len() > MAX_ENTRIES;
        let entries: Vec<_> = rows.iter().take(MAX_ENTRIES).filter_map(|row| LogEntry::decode(row)).collect();
        let logged = if is_cut {
            entries.iter().filter_map(LogEntry::as_logged).collect()
        } else {
            self.resolve(schema, entries).await?
        };
        is_cut |= logged.len() > MAX_ENTRIES;
        Ok(Reading { log: log.clone(), evidence, position, logged, is_cut })
    }

    /// Prefixes of keys whose rows, or whose users' rows, were changed within `window` by their `updated_at`. This is
    /// all that is known where there is no log.
    async fn updated_within(&self, window: Duration) -> Result<Vec<(Prefix, String)>, StoreError> {
        let schema = &self.schema(Deadline::Check).await?;
        let (keys, users) = (schema.relation("api_keys"), schema.relation("users"));
        let branch = |(table, alias): (&str, &str)| {
            let column = format!("{alias}.updated_at");
            let kind = schema.kind(table, "updated_at")?;
            Some(format!(
                "SELECT k.key_prefix, CAST({column} AS text) FROM {keys} k
                JOIN {users} u ON u.id = k.user_id WHERE {}",
                self.statements().is_within(&column, kind, window)
            ))
        };
        let branches: Vec<_> = [("api_keys", "k"), ("users", "u")].into_iter().filter_map(branch).collect();
        if branches.is_empty() {
            return Ok(Vec::new());
        }
        let statement = Statement::plain(branches.join(" UNION "));
        let rows = self.guarded_query(Operation::Changes, statement).await?;
        let updated = rows.into_iter().filter_map(|values| {
            let [prefix, updated_at] = <[SqlValue; 2]>::try_from(values).ok()?;
            Some((Prefix::parse(&prefix?).ok()?, updated_at?))
        });
        Ok(updated.collect())
    }

    /// Deletes the entries that every reader has seen. An entry's age counts from when pruning first saw it, since its
    /// transaction may have been open for long.
    async fn prune_changes(&self) -> Result<(), StoreError> {
        let schema = self.schema(Deadline::Check).await?;
        let statements = self.statements().prune_log(&schema, MEMORY);
        // Not on the connection that look-ups leave to the feed.
        let _permit = self.permit().await;
        for statement in statements {
            self.backend().query(Deadline::Operator, statement).await?;
        }
        Ok(())
    }
}

fn parse_evidence(json: &str) -> Result<Evidence, StoreError> {
    serde_json::from_str(json)
        .map_err(|error| StoreError::Unfit(format!("evidence of the log: {error}").into()))
}

fn no_evidence() -> StoreError {
    StoreError::Unfit("the log of changes returned no evidence".into())
}

impl From<StoreError> for LogError {
    fn from(error: StoreError) -> Self {
        let text = error.to_string().into();
        if matches!(error, StoreError::Unfit(_)) { Self::Unsuitable(text) } else { Self::Unavailable(text) }
    }
}
