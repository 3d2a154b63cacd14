//! Creates the tables, the change log and the triggers of a SQLite file.

use super::{SqliteFile, SqliteStatements, audit, triggers};
use crate::store::{
    StoreError,
    schema::{Schema, TABLES},
    statement::{Deadline, Statement, first_value},
    statements::Statements,
    watched_tables::watched_tables,
};

impl SqliteFile {
    /// Creates all tables if the file is empty.
    pub(crate) async fn create_if_empty(&self) -> Result<(), StoreError> {
        // At the first start the change feed and the look-ups find the empty file at the same time.
        let _creation = self.creation().await;
        let count = Statement::plain("SELECT CAST(count(*) AS TEXT) FROM sqlite_schema");
        let count = first_value(self.query(Deadline::Operator, count).await?);
        if count.as_deref() != Some("0") {
            return Ok(());
        }
        self.execute_all(SqliteStatements.create_tables(&TABLES)).await?;
        unless_refused(self.execute_all(SqliteStatements.create_rotations()).await)?;
        unless_refused(self.execute_all(SqliteStatements.create_management()).await)?;
        let rows = self.query(Deadline::Operator, SqliteStatements.read_schema()).await?;
        let schema = Schema::new(&SqliteStatements, rows).fit()?;
        unless_refused(self.install_log(&schema).await)?;
        unless_refused(self.execute_all(SqliteStatements.create_proofs()).await)?;
        unless_refused(self.install_audit(&schema).await)
    }

    /// Creates the change log and the triggers that write it, in place of those of an earlier version.
    pub(crate) async fn install_log(&self, schema: &Schema) -> Result<(), StoreError> {
        let old = "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND name LIKE 'keystile_changed%'";
        let old = self.query(Deadline::Operator, Statement::plain(old)).await?;
        let drop = old.into_iter().flatten().flatten().map(|name| format!("DROP TRIGGER \"{name}\""));
        let triggers = triggers::triggers(schema, &watched_tables(schema)).into_iter();
        // Instances that serve from this file read its tables again.
        let notice = "INSERT INTO keystile_changes (prefix) VALUES (NULL)".to_owned();
        let create = triggers::log(schema).into_iter().chain(triggers.map(|trigger| trigger.sql));
        self.execute_all(drop.chain(create).chain([notice]).map(Statement::plain).collect()).await
    }

    /// Creates the audit log and the triggers that write it, in place of those of an earlier version.
    pub(crate) async fn install_audit(&self, schema: &Schema) -> Result<(), StoreError> {
        let old = "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND name LIKE 'keystile_audited%'";
        let old = self.query(Deadline::Operator, Statement::plain(old)).await?;
        let triggers = audit::triggers(schema);
        // Another migration may create or drop them at the same time.
        let names =
            old.into_iter().flatten().flatten().chain(triggers.iter().map(|trigger| trigger.name.clone()));
        let drop = names.map(|name| format!("DROP TRIGGER IF EXISTS \"{name}\""));
        let drop: Vec<_> = drop.collect();
        let triggers = triggers.into_iter().map(|trigger| trigger.sql);
        let create = audit::TABLES.iter().map(|&table| table.to_owned()).chain(triggers);
        self.execute_all(drop.into_iter().chain(create).map(Statement::plain).collect()).await
    }

    async fn execute_all(&self, statements: Vec<Statement>) -> Result<(), StoreError> {
        self.transaction(statements, false, Box::new(|_| ())).await?.into_result()
    }
}

/// Keystile works without a log and without proofs, so a database that refuses them is no failure.
fn unless_refused(result: Result<(), StoreError>) -> Result<(), StoreError> {
    if let Err(StoreError::Unfit(_)) = result { Ok(()) } else { result }
}
