//! The rights that Keystile's roles need in this database, for `keystile migrate --print-grants`.

use super::{
    Database, StoreError,
    management::{inserted_columns, shown_columns, updated_columns},
    statement::Deadline,
    statements::UsedColumns,
    watched_tables::read_columns,
};

impl Database {
    /// A script of GRANT statements for the tables that are there: for `role`, which runs instances, and for
    /// `{role}_admin`, which runs the commands that write. None where the database has no roles.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer, or its tables do not fit.
    pub async fn grants(&self, role: &str) -> Result<Option<String>, StoreError> {
        let schema = self.backend().read_schema(Deadline::Operator).await?.fit()?;
        let Some(statement) = self.statements().granted_relations(&schema) else { return Ok(None) };
        let relations = self.backend().query(Deadline::Operator, statement).await?;
        let used: Vec<_> = read_columns(&schema)
            .into_iter()
            .map(|(table, read)| UsedColumns {
                table,
                read: read.into_iter().chain(shown_columns(table)).collect(),
                inserted: inserted_columns(table),
                updated: updated_columns(table),
            })
            .collect();
        Ok(Some(self.statements().grants(&schema, &used, relations, role)))
    }
}
