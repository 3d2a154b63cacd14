//! Creates the change log of a Postgres database and the triggers that write it.

use std::time::Duration;

use super::{
    PostgresPool, audit, audit_check, change_log,
    statements::MIGRATION_LOCK,
    triggers::{self, LogLocation},
};
use crate::store::{
    Row, StoreError,
    audited_tables::{AUDIT, audited_tables},
    schema::{CHANGES, Schema},
    statement::{Deadline, Statement, TransactionOutcome, first_value},
    watched_tables::watched_tables,
};

/// How long a statement waits for a table that is in use. Sessions that read the table wait behind it.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '1s'";

/// How often a transaction is tried while its tables are in use, and the pause in between.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(2);

impl PostgresPool {
    /// Creates the change log and the triggers that write it, or replaces those of an earlier version.
    ///
    /// There is one transaction for each table, so that none holds the locks of two tables: it could deadlock with an
    /// application. No statement here blocks readers.
    pub(crate) async fn install_log(&self, schema: &Schema, notifies: bool) -> Result<(), StoreError> {
        let location = self.location(schema_of(schema, CHANGES)).await?;
        let tables = watched_tables(schema);
        let functions = tables.iter().flat_map(|table| triggers::table_function(&location, table));
        let log = triggers::log(&location).into_iter().chain(triggers::notify(&location, notifies));
        self.execute_all(log.chain(functions).collect()).await?;
        for Member { name, relation, kind, is_partition } in self.members(change_log::members()).await? {
            let Some(table) = tables.iter().find(|table| table.name == name) else { continue };
            if !matches!(&*kind, "r" | "p") {
                return Err(StoreError::Unfit(
                    format!("{relation} is a view or a foreign table, whose changes cannot be logged").into(),
                ));
            }
            self.execute_all(triggers::table_triggers(&location, table, &relation, is_partition)).await?;
        }
        let reset_lost = format!("SELECT CAST(setval('{}', 1, false) AS text)", location.lost_sequence());
        // Instances that serve from these tables read them again.
        let notice = format!("INSERT INTO {}.{CHANGES} (prefix) VALUES (NULL)", location.schema);
        self.execute_all(vec![reset_lost, notice]).await
    }

    /// Creates the audit log and the triggers that write it, or replaces those of an earlier version. One transaction for
    /// each table, as above.
    pub(crate) async fn install_audit(&self, schema: &Schema) -> Result<(), StoreError> {
        let tables = audited_tables(schema);
        let members = self.members(audit_check::members(&tables)).await?;
        for Member { relation, kind, .. } in &members {
            if !matches!(&**kind, "r" | "p") {
                return Err(StoreError::Unfit(
                    format!("{relation} is a view or a foreign table, whose changes cannot be audited")
                        .into(),
                ));
            }
        }
        let location = self.location(schema_of(schema, AUDIT)).await?;
        let functions = tables.iter().flat_map(|table| audit::functions(&location, schema, table));
        self.execute_all(audit::table(&location).into_iter().chain(functions).collect()).await?;
        for Member { name, relation, is_partition, .. } in &members {
            let Some(table) = tables.iter().find(|table| table.name == name) else { continue };
            self.execute_all(audit::triggers(&location, schema, table, relation, *is_partition)).await?;
        }
        let reset_lost =
            format!("SELECT CAST(setval('{}', 1, false) AS text)", audit::lost_sequence(&location));
        self.execute_all(vec![reset_lost]).await
    }

    async fn members(&self, sql: String) -> Result<Vec<Member>, StoreError> {
        let members = self.query(Deadline::Operator, &Statement::plain(sql)).await?;
        let member = |values: Row| {
            let mut values = values.into_iter().map(Option::unwrap_or_default);
            let [name, relation, kind, is_partition] =
                std::array::from_fn(|_| values.next().unwrap_or_default());
            Member { name, relation, kind, is_partition: is_partition == "true" }
        };
        Ok(members.into_iter().map(member).collect())
    }

    async fn location<'a>(&self, schema: &'a str) -> Result<LogLocation<'a>, StoreError> {
        let version = Statement::plain("SELECT current_setting('server_version_num')");
        let version = first_value(self.query(Deadline::Operator, &version).await?);
        let version: u32 = version.and_then(|version| version.parse().ok()).unwrap_or(0);
        Ok(LogLocation { schema, replaces_triggers: version >= 140_000 })
    }

    /// Runs statements in one transaction. Tries again while an application holds a lock that they need.
    async fn execute_all(&self, statements: Vec<String>) -> Result<(), StoreError> {
        let locks = [MIGRATION_LOCK, LOCK_TIMEOUT].map(Statement::plain).into_iter();
        let statements: Vec<_> = locks.chain(statements.into_iter().map(Statement::plain)).collect();
        for _ in 1..TRIES {
            match self.transaction(statements.clone(), false, Box::new(|_| ())).await? {
                TransactionOutcome::Failed(_, StoreError::Locked(_)) => tokio::time::sleep(PAUSE).await,
                outcome => return outcome.into_result(),
            }
        }
        let outcome = self.transaction(statements, false, Box::new(|_| ())).await?;
        outcome.into_result().map_err(|error| match error {
            StoreError::Locked(_) => StoreError::Unavailable(
                "a long transaction is using its tables; run `keystile migrate` when it is over".into(),
            ),
            error => error,
        })
    }
}

/// A relation that needs its own triggers.
struct Member {
    /// The table whose rows it has.
    name: String,
    /// Its name in SQL.
    relation: String,
    /// `pg_class.relkind`.
    kind: String,
    /// Whether it has the row triggers of its parent.
    is_partition: bool,
}

/// The schema of this table of Keystile's. Where it does not exist, that of the change log, or of the keys.
fn schema_of<'a>(schema: &'a Schema, table: &'a str) -> &'a str {
    let table = [table, CHANGES].into_iter().find(|table| schema.has_table(table)).unwrap_or("api_keys");
    let prefix = schema.relation(table).strip_suffix(table);
    prefix.and_then(|prefix| prefix.strip_suffix('.')).unwrap_or("public")
}
