//! Creates the tables where there are none. What somebody else made is left as it is.

use std::time::Duration;

use super::{
    Database, StoreError,
    catalog::Catalog,
    postgres::{
        self,
        triggers::{self, Place},
    },
    proofs,
    sql::{Dialect, Outcome, Patience, Statement},
    sqlite,
    watched::watched,
};
use crate::revocation::{Cause, Problem, verify};

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
    /// Creates what tables are missing, and the log of changes. Can be run again, and by two at once. `notify`: whether
    /// the database notifies instances of changes, or `None` to leave that as it is.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer, refuses, or has tables that do not fit.
    pub async fn migrate(&self, notify: Option<bool>) -> Result<Migration, StoreError> {
        let catalog = Catalog::read(self.backend(), Patience::Person).await?;
        let (kept, created): (Vec<_>, Vec<_>) =
            TABLES.into_iter().partition(|table| catalog.has_table(table));
        self.create(&created).await?;
        let log = self.watch(notify).await?;
        let has_proofs = catalog.has_table(proofs::TABLE);
        let refusal = if has_proofs { None } else { self.create_proofs(LOCK).await? };
        self.forget_tables();
        let mut warnings = self.doubts().await?;
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
                self.watch(None).await?;
                self.create_proofs(LOCK).await.map(drop)
            }
            false => Ok(()),
        }
    }

    /// What still keeps instances from relying on the log, though it was made.
    async fn doubts(&self) -> Result<Vec<String>, StoreError> {
        let catalog = Catalog::read(self.backend(), Patience::Person).await?.fit()?;
        if !catalog.has_log() {
            return Ok(Vec::new());
        }
        let problems = match self.read_log(&catalog, None).await {
            Ok(reading) => verify(&reading.evidence, None).problems,
            Err(error) => vec![Cause::Unreadable.with(error.to_string())],
        };
        let doubt = |problem: Problem| {
            format!(
                "{problem}: a changed or revoked key is noticed within 30 s at the latest; {}",
                problem.fix
            )
        };
        Ok(problems.into_iter().map(doubt).collect())
    }

    /// Makes the database log its changes. A refusal is no failure: there are other ways to notice.
    async fn watch(&self, notify: Option<bool>) -> Result<Log, StoreError> {
        let catalog = Catalog::read(self.backend(), Patience::Person).await?.fit()?;
        // A log that cannot be read, such as one of an earlier version, is made again.
        let evidence = if catalog.has_log() { self.read_log(&catalog, None).await.ok() } else { None };
        let evidence = evidence.map(|reading| reading.evidence);
        let notifies = notify.or(evidence.as_ref().map(|evidence| evidence.notifies)).unwrap_or(true);
        if let Some(evidence) = evidence
            && verify(&evidence, None).problems.is_empty()
            && !evidence.compares_dropped
            && (self.is_file() || evidence.notifies == notifies)
        {
            return Ok(Log::Kept);
        }
        let made = match self.dialect() {
            Dialect::Sqlite => self.watch_file(&catalog).await,
            Dialect::Postgres => self.watch_tables(&catalog, notifies).await,
        };
        match made {
            Ok(()) => Ok(Log::Made),
            Err(StoreError::Unfit(reason)) => Ok(Log::Refused(reason.to_string())),
            Err(error) => Err(error),
        }
    }

    async fn watch_file(&self, catalog: &Catalog) -> Result<(), StoreError> {
        let old = "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND name LIKE 'keystile_changed%'";
        let old = self.backend().query(Patience::Person, Statement::new(old, [])).await?;
        let drop = old.into_iter().flatten().flatten().map(|name| format!("DROP TRIGGER \"{name}\""));
        let triggers = sqlite::triggers::triggers(catalog, &watched(catalog));
        let create = triggers.into_iter().map(|trigger| trigger.sql);
        let told = "INSERT INTO keystile_changes (prefix) VALUES (NULL)".to_owned();
        self.run_all(drop.chain(sqlite::triggers::log(catalog)).chain(create).chain([told]).collect()).await
    }

    /// One transaction for each table, so that none holds the locks of two: it could deadlock with an application.
    /// Nothing of this locks out readers.
    async fn watch_tables(&self, catalog: &Catalog, notifies: bool) -> Result<(), StoreError> {
        let version = self.value("SELECT current_setting('server_version_num')").await?;
        let version: u32 = version.and_then(|version| version.parse().ok()).unwrap_or(0);
        let beside = if catalog.has_table("keystile_changes") { "keystile_changes" } else { "api_keys" };
        let schema =
            catalog.relation(beside).strip_suffix(beside).and_then(|schema| schema.strip_suffix('.'));
        let schema = schema.unwrap_or("public");
        let place = Place { schema, replaces_triggers: version >= 140_000 };
        let tables = watched(catalog);
        let functions = tables.iter().flat_map(|table| triggers::table_function(&place, table));
        let log = triggers::log(&place).into_iter().chain(triggers::notify(&place, notifies));
        self.run_all(log.chain(functions).collect()).await?;
        let members = Statement::new(postgres::change_log::members(), []);
        for cells in self.backend().query(Patience::Person, members).await? {
            let mut cells = cells.into_iter().map(Option::unwrap_or_default);
            let [name, relation, kind, is_partition] =
                std::array::from_fn(|_| cells.next().unwrap_or_default());
            let Some(table) = tables.iter().find(|table| table.name == name) else { continue };
            if !matches!(&*kind, "r" | "p") {
                return Err(StoreError::Unfit(
                    format!("{relation} is a view or a foreign table, whose changes cannot be logged").into(),
                ));
            }
            self.run_all(triggers::table_triggers(&place, table, &relation, is_partition == "true")).await?;
        }
        let forgive = format!("SELECT CAST(setval('{}', 1, false) AS text)", place.lost());
        // Instances that serve from these tables look at them again.
        let tell = format!("INSERT INTO {schema}.keystile_changes (prefix) VALUES (NULL)");
        self.run_all(vec![forgive, tell]).await
    }

    /// Runs statements in one transaction, again and again while an application holds a lock that they need.
    async fn run_all(&self, statements: Vec<String>) -> Result<(), StoreError> {
        let lock: &[&str] = match self.dialect() {
            Dialect::Postgres => &[LOCK, PATIENCE],
            Dialect::Sqlite => &[],
        };
        let lock = lock.iter().map(|sql| (*sql).to_owned());
        let statements: Vec<_> = lock.chain(statements).map(|sql| Statement::new(sql, [])).collect();
        for tried in 1.. {
            match self.backend().transaction(statements.clone(), false, Box::new(|_| ())).await? {
                Outcome::Failed(_, StoreError::Locked(_)) if tried < TRIES => tokio::time::sleep(PAUSE).await,
                Outcome::Failed(_, StoreError::Locked(_)) => {
                    return Err(StoreError::Unavailable(
                        "a long transaction is using its tables; run `keystile migrate` when it is over"
                            .into(),
                    ));
                }
                Outcome::Failed(_, error) => return Err(error),
                Outcome::Committed | Outcome::Refused(_) => break,
            }
        }
        Ok(())
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
