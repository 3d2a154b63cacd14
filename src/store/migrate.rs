//! Creates the tables where there are none. What somebody else made is left as it is.

use std::time::Duration;

use super::{
    Database, LogState, StoreError,
    catalog::Catalog,
    changes, proofs,
    sql::{Dialect, Outcome, Patience, Statement},
};

mod triggers;

pub(super) use triggers::triggers;

const SQLITE: &str = include_str!("migrations/sqlite.sql");
const POSTGRES: &str = include_str!("migrations/postgres.sql");
const TABLES: [&str; 2] = ["users", "api_keys"];

/// How long, and how often, a migration waits for tables that somebody is using. Whoever reads them waits behind it.
const PATIENCE: &str = "SET LOCAL lock_timeout = '1s'";
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(2);

/// Lets two migrations at once pass one after the other. The number is arbitrary, and ours.
const LOCK: &str = "SELECT CAST(pg_advisory_xact_lock(5353872341) AS text)";

const POSTGRES_INDEX: &str = "SELECT 'found' FROM pg_index i
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = to_regclass('api_keys') AND a.attname = 'key_prefix' AND i.indpred IS NULL";
const SQLITE_INDEX: &str = "SELECT 'found' FROM pragma_index_list('api_keys') l
    JOIN pragma_index_info(l.name) i WHERE i.seqno = 0 AND i.name = 'key_prefix' AND l.partial = 0";

/// What a migration did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// Tables that were not there.
    pub created: Vec<&'static str>,
    /// Tables that were there, and were not touched.
    pub kept: Vec<&'static str>,
    /// Whether the database logs its changes now.
    pub log: Log,
    /// Whether the table of proofs was made now.
    pub proofs_created: bool,
    /// What an operator should look at, with its mend.
    pub warnings: Vec<String>,
}

/// What became of the log of changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Log {
    /// It was made, or made to fit.
    Made,
    /// It was there, as it should be.
    Kept,
    /// The database did not allow it.
    Refused(String),
}

impl Database {
    /// Creates what tables are missing. Can be run again, and by two at once.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer, refuses, or has tables that do not fit.
    pub async fn migrate(&self) -> Result<Migration, StoreError> {
        let catalog = Catalog::read(self.backend(), Patience::Person).await?;
        let (kept, created): (Vec<_>, Vec<_>) =
            TABLES.into_iter().partition(|table| catalog.has_table(table));
        self.create(&created).await?;
        let log = self.watch().await?;
        let has_proofs = catalog.has_table(proofs::TABLE);
        let refusal = if has_proofs { None } else { self.create_proofs(LOCK).await? };
        self.forget_tables();
        let mut warnings = Vec::new();
        if let Some(reason) = &refusal {
            warnings.push(format!(
                "no table of proofs: {reason}; until it is there, a restart without Redis costs one bcrypt for each \
                 key. To have one, run `keystile migrate` as the owner of the tables"
            ));
        }
        if let Log::Refused(reason) = &log {
            warnings.push(format!(
                "no log of changes: {reason}; until one is there, a changed or revoked key is noticed within 30 s \
                 at the latest. To have one, run `keystile migrate` as the owner of the tables"
            ));
        }
        if !self.prefix_is_indexed().await? {
            warnings.push(
                "api_keys has no index on key_prefix, so every look-up reads the whole table; \
                 mend it with: CREATE INDEX api_keys_key_prefix ON api_keys (key_prefix);"
                    .to_owned(),
            );
        }
        let proofs_created = !has_proofs && refusal.is_none();
        Ok(Migration { created, kept, log, proofs_created, warnings })
    }

    /// Creates the tables of a file that has nothing in it at all.
    pub(super) async fn create_in_empty_file(&self) -> Result<(), StoreError> {
        let count = Statement::new("SELECT CAST(count(*) AS TEXT) FROM sqlite_schema", []);
        let rows = self.backend().query(Patience::Person, count).await?;
        match rows == [[Some("0".to_owned())]] {
            true => {
                self.create(&TABLES).await?;
                self.watch().await?;
                self.create_proofs(LOCK).await.map(drop)
            }
            false => Ok(()),
        }
    }

    /// Makes the database log its changes. A refusal is no failure: there are other ways to notice.
    async fn watch(&self) -> Result<Log, StoreError> {
        let catalog = Catalog::read(self.backend(), Patience::Person).await?.fit()?;
        let (statements, fingerprint) = match self.dialect() {
            Dialect::Sqlite => triggers::statements(&catalog, Dialect::Sqlite, ""),
            Dialect::Postgres => {
                // Where the tables are found now, and nothing that a session brings along.
                let path = self.value("SELECT current_setting('search_path')").await?.unwrap_or_default();
                let path = if path.is_empty() { "public".to_owned() } else { path };
                triggers::statements(&catalog, Dialect::Postgres, &format!("{path}, pg_temp"))
            }
        };
        if self.log_state_of(&catalog).await? != LogState::Missing
            && self.is_made_of(&statements, &fingerprint).await?
        {
            return Ok(Log::Kept);
        }
        let lock: &[&str] = match self.dialect() {
            Dialect::Postgres => &[LOCK, PATIENCE],
            Dialect::Sqlite => &[],
        };
        // Whoever serves from these tables looks at them anew.
        let tell = format!("INSERT INTO {} (prefix) VALUES (NULL)", changes::TABLE);
        let lock = lock.iter().map(|sql| (*sql).to_owned());
        let statements = lock.chain(statements).chain([tell]).map(|sql| Statement::new(sql, []));
        let statements: Vec<_> = statements.collect();
        for tried in 1.. {
            match self.backend().transaction(statements.clone(), false, Box::new(|_| ())).await? {
                Outcome::Failed(_, StoreError::Unfit(reason)) => return Ok(Log::Refused(reason.to_string())),
                Outcome::Failed(_, error) if is_locked(&error) && tried < TRIES => {
                    tokio::time::sleep(PAUSE).await
                }
                Outcome::Failed(_, error) if is_locked(&error) => {
                    return Err(StoreError::Unavailable(
                        "a long transaction is using its tables; run `keystile migrate` when it is over"
                            .into(),
                    ));
                }
                Outcome::Failed(_, error) => return Err(error),
                Outcome::Committed | Outcome::Refused(_) => break,
            }
        }
        Ok(Log::Made)
    }

    /// Whether the log that is there was made by these very statements.
    async fn is_made_of(&self, statements: &[String], fingerprint: &str) -> Result<bool, StoreError> {
        match self.dialect() {
            Dialect::Postgres => {
                let comment = "SELECT obj_description(to_regclass('keystile_changes'), 'pg_class')";
                let comment = self.value(comment).await?.unwrap_or_default();
                Ok(comment.strip_prefix("keystile ") == Some(fingerprint))
            }
            Dialect::Sqlite => {
                let triggers = Statement::new("SELECT sql FROM sqlite_schema WHERE type = 'trigger'", []);
                let there = self.backend().query(Patience::Person, triggers).await?;
                let is_there =
                    |statement: &String| there.iter().flatten().flatten().any(|sql| sql == statement);
                Ok(statements.iter().filter(|sql| sql.starts_with("CREATE TRIGGER")).all(is_there))
            }
        }
    }

    async fn value(&self, sql: &str) -> Result<Option<String>, StoreError> {
        let rows = self.backend().query(Patience::Person, Statement::new(sql, [])).await?;
        Ok(rows.into_iter().next().and_then(|cells| cells.into_iter().next()?))
    }

    async fn create(&self, tables: &[&str]) -> Result<(), StoreError> {
        if tables.is_empty() {
            return Ok(());
        }
        let (lock, script) = match self.backend().dialect() {
            Dialect::Sqlite => (None, SQLITE),
            Dialect::Postgres => (Some(LOCK), POSTGRES),
        };
        let statements = script
            .split("-- table: ")
            .filter_map(|section| section.split_once('\n'))
            .filter(|(table, _)| tables.contains(table))
            .flat_map(|(_, body)| body.split(';'))
            .filter(|sql| !sql.trim().is_empty());
        let statements = lock.into_iter().chain(statements).map(|sql| Statement::new(sql, [])).collect();
        match self.backend().transaction(statements, false, Box::new(|_| ())).await? {
            Outcome::Failed(_, error) => Err(error),
            Outcome::Committed | Outcome::Refused(_) => Ok(()),
        }
    }

    async fn prefix_is_indexed(&self) -> Result<bool, StoreError> {
        let sql = match self.backend().dialect() {
            Dialect::Sqlite => SQLITE_INDEX,
            Dialect::Postgres => POSTGRES_INDEX,
        };
        Ok(!self.backend().query(Patience::Person, Statement::new(sql, [])).await?.is_empty())
    }
}

/// Whether a lock was not to be had in time (`lock_not_available`).
fn is_locked(error: &StoreError) -> bool {
    error.to_string().contains("SQLSTATE 55P03")
}
