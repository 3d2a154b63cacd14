//! Writes the usage of keys to their rows: each batch is added once, even if the connection is lost.

use serde_json::json;

use super::{
    Database, StoreError,
    database::calls::Operation,
    decode::timestamp::write_timestamp,
    schema::Schema,
    statement::{Deadline, Statement, first_value},
    statements::{ColumnRef, Statements},
};
use crate::{
    config::UsageColumn,
    dependencies::Cause,
    resilience::CallError,
    usage::{Batch, UsageStore, WriteError, WriteOutcome},
};

/// The usage columns of `api_keys`. Cheap to clone.
#[derive(Clone)]
pub struct UsageTable {
    database: Database,
    columns: Vec<UsageColumn>,
}

impl UsageTable {
    /// Writes these columns, as far as the table has them.
    pub fn new(database: Database, columns: &[UsageColumn]) -> Self {
        Self { database, columns: columns.to_vec() }
    }
}

impl UsageStore for UsageTable {
    type Error = StoreError;

    /// Adds to `total_requests`, and updates `last_used_at` where it is older than five minutes.
    async fn write_usage(&self, batch: &Batch) -> WriteOutcome<StoreError> {
        let schema = match self.database.schema(Deadline::Check).await {
            Ok(schema) => schema,
            Err(error) => return WriteOutcome::Failed(error),
        };
        let statements = self.database.statements();
        let Some(sql) = update(&schema, statements, &self.columns) else { return WriteOutcome::Done };
        // In one order, so that two instances do not wait for each other's rows.
        let mut batch: Vec<_> = batch.iter().collect();
        batch.sort_unstable_by_key(|(key, _)| **key);
        let rows = batch.into_iter().map(|(key, usage)| {
            let last = statements.timestamp(write_timestamp(usage.last));
            json!({ "id": key.0, "n": usage.requests, "last": last })
        });
        let rows = serde_json::Value::from_iter(rows).to_string();
        self.database.write_once(Statement::new(sql, [Some(rows)])).await
    }

    async fn was_written(&self, transaction: &str) -> Result<Option<bool>, StoreError> {
        let Some(statement) = self.database.statements().transaction_status(transaction) else {
            return Ok(None);
        };
        let rows = self.database.guarded_query(Operation::Usage, statement).await?;
        Ok(match first_value(rows).as_deref() {
            Some("committed") => Some(true),
            Some("aborted") => Some(false),
            _ => None,
        })
    }
}

impl WriteError for StoreError {
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Unfit(_))
    }

    fn cause(&self) -> Cause {
        CallError::cause(self)
    }
}

/// The statement that writes a batch to these columns. None where the table has none of them.
fn update(schema: &Schema, statements: &dyn Statements, columns: &[UsageColumn]) -> Option<String> {
    let kind =
        |column: UsageColumn| schema.kind("api_keys", column.name()).filter(|_| columns.contains(&column));
    let name = |column: UsageColumn| schema.name("api_keys", column.name());
    let (last_kind, total_kind) = (kind(UsageColumn::LastUsedAt), kind(UsageColumn::TotalRequests));
    let (last, total) = (name(UsageColumn::LastUsedAt), name(UsageColumn::TotalRequests));
    let parts = statements.usage_update(
        &ColumnRef { name: &last, kind: last_kind.unwrap_or("text") },
        &ColumnRef { name: &total, kind: total_kind.unwrap_or("text") },
    );
    let mut set = Vec::new();
    let mut condition = String::new();
    if last_kind.is_some() {
        let is_due = format!("k.{last} IS NULL OR {}", parts.is_older);
        set.push(format!("{last} = CASE WHEN {is_due} THEN {} ELSE k.{last} END", parts.last_used_at));
        // Without a count, a row that does not change needs no new version.
        condition = format!(" AND ({is_due})");
    }
    if total_kind.is_some() {
        set.push(format!("{total} = {}", parts.total_requests));
        condition.clear();
    }
    if set.is_empty() {
        return None;
    }
    // The qualified name is that of the table that look-ups read. The search path may differ in this session.
    Some(format!(
        "UPDATE {} AS k SET {} FROM {} WHERE k.{} = {}{condition}",
        schema.relation("api_keys"),
        set.join(", "),
        parts.batch,
        schema.name("api_keys", "id"),
        parts.key,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::postgres::PostgresStatements;

    const BOTH: [UsageColumn; 2] = [UsageColumn::LastUsedAt, UsageColumn::TotalRequests];

    fn schema(columns: &[(&str, &str)]) -> Schema {
        let row = |values: [&str; 4]| values.map(|value| Some(value.to_owned())).to_vec();
        let columns = columns.iter().map(|(name, kind)| row(["column", "api_keys", name, kind]));
        let relation = row(["relation", "api_keys", "app.api_keys", ""]);
        Schema::new(&PostgresStatements, columns.chain([relation]).collect())
    }

    #[test]
    fn usage_is_written_to_the_table_that_look_ups_read() {
        let schema = schema(&[("id", "integer"), ("total_requests", "bigint")]);
        let sql = update(&schema, &PostgresStatements, &BOTH).expect("a column");
        assert!(sql.starts_with("UPDATE app.api_keys AS k SET total_requests = "), "{sql}");
    }

    #[test]
    fn column_is_written_by_its_own_spelling() {
        let schema = schema(&[("id", "integer"), ("Total_Requests", "integer")]);
        let sql = update(&schema, &PostgresStatements, &BOTH).expect("a column");
        let set = "SET \"Total_Requests\" = LEAST(COALESCE(k.\"Total_Requests\", 0) + d.n, 2147483647)";
        assert!(sql.contains(set), "{sql}");
    }

    #[test]
    fn nothing_is_written_without_a_column() {
        let with_column = schema(&[("id", "integer"), ("total_requests", "bigint")]);
        assert_eq!(update(&with_column, &PostgresStatements, &[]), None);
        assert_eq!(update(&schema(&[("id", "integer")]), &PostgresStatements, &BOTH), None);
    }
}
