//! How operators manage users and keys.

use std::sync::Arc;

use time::OffsetDateTime;

use super::{
    Database, SqlValue, StoreError,
    actor::Action,
    decode::timestamp::write_timestamp,
    schema::Schema,
    statement::{Deadline, Progress, Rows, Statement, TransactionOutcome},
};
use crate::clock;

mod audit;
mod budgets;
mod columns;
mod display_row;
mod import;
mod keys;
mod users;

pub use audit::{AuditFilter, AuditPage, AuditPosition};
pub use budgets::UnreadBudget;
pub use display_row::DisplayRow;
pub use import::{ImportError, ImportRow};
pub use keys::NewKey;
pub use users::NewUser;

/// Whether operators manage this column.
pub(super) fn knows_column(table: &str, column: &str) -> bool {
    let columns = match table {
        "api_keys" => columns::API_KEYS,
        "users" => columns::USERS,
        _ => return false,
    };
    columns.iter().any(|known| known.name == column)
}

/// The columns of a table that operators see. A hash and a password are not among them.
pub(super) fn shown_columns(table: &str) -> impl Iterator<Item = &'static str> {
    let columns = match table {
        "api_keys" => columns::API_KEYS,
        "users" => columns::USERS,
        _ => &[],
    };
    let is_shown = |column: &&columns::Column| column.kind != columns::ColumnKind::Hash;
    columns.iter().filter(is_shown).map(|column| column.name)
}

/// The columns that a new key or user is written with.
pub(super) fn inserted_columns(table: &str) -> Vec<&'static str> {
    let more: &[_] = match table {
        "api_keys" => &["key_hash"],
        "users" => &["hashed_password", "role_id"],
        _ => &[],
    };
    shown_columns(table).chain(more.iter().copied()).collect()
}

/// The columns of existing keys and users that commands write.
pub(super) fn updated_columns(table: &str) -> Vec<&'static str> {
    match table {
        "api_keys" | "users" => vec!["is_active", "updated_at"],
        _ => Vec::new(),
    }
}

/// Why an operation failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ManagementError {
    /// The database failed, or refused it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not possible. The text says why, and what to do.
    #[error("{0}")]
    Refused(String),
}

type Result<T, E = ManagementError> = std::result::Result<T, E>;

/// A column of one table, and the value to write.
type ColumnValue = (&'static str, SqlValue);

impl DisplayRow {
    /// The row, if it is inactive now. Row-level security or a trigger may have ignored the update without an error.
    fn inactive(self) -> Result<Self> {
        if self.get("is_active").as_bool() == Some(false) {
            return Ok(self);
        }
        Err(ManagementError::Refused(
            "the database left the row as it is; row-level security or a trigger of its own keeps it so"
                .into(),
        ))
    }
}

impl Database {
    async fn query(&self, statement: Statement) -> Result<Rows> {
        Ok(self.backend().query(Deadline::Operator, statement).await?)
    }

    /// Makes a change: runs these statements in one transaction, all or nothing, in which the audit log knows who makes
    /// which change. Every change by Keystile goes this way. With `needs_rows`, each statement must return a row.
    async fn change(
        &self,
        action: Action,
        mut statements: Vec<Statement>,
        needs_rows: bool,
        progress: Progress,
    ) -> Result<TransactionOutcome> {
        // The tables may have been migrated since they were read.
        self.forget_tables();
        let schema = self.operator_schema().await?;
        let before = self.statements().begin_change(&schema, self.actor(), action);
        let (offset, count) = (before.len(), statements.len());
        for statement in &mut statements {
            statement.is_required |= needs_rows;
        }
        statements.splice(0..0, before);
        statements.extend(self.statements().end_change(&schema));
        let progress = move |done: usize| progress(done.saturating_sub(offset).min(count));
        let outcome = self.backend().transaction(statements, false, Box::new(progress)).await?;
        let is_change = |at: usize| (offset..offset + count).contains(&at);
        match outcome {
            TransactionOutcome::Committed(mut rows) => {
                Ok(TransactionOutcome::Committed(rows.drain(offset..offset + count).collect()))
            }
            TransactionOutcome::Failed(at, error) if is_change(at) => {
                Ok(TransactionOutcome::Failed(at - offset, error))
            }
            TransactionOutcome::RolledBack(places) if places.iter().any(|at| is_change(*at)) => {
                let places = places.into_iter().filter(|at| is_change(*at)).map(|at| at - offset);
                Ok(TransactionOutcome::RolledBack(places.collect()))
            }
            TransactionOutcome::Failed(_, error) => Err(audit_failed(&error.to_string())),
            TransactionOutcome::RolledBack(_) => {
                let problems = self.audit_state(&schema).await?.problems;
                Err(audit_failed(problems.first().map_or("its triggers changed meanwhile", String::as_str)))
            }
        }
    }

    /// The same for one statement, which need not return a row.
    async fn change_by(&self, action: Action, statement: Statement) -> Result<Rows> {
        match self.change(action, vec![statement], false, Box::new(|_| ())).await? {
            TransactionOutcome::Committed(rows) => Ok(rows.into_iter().next().unwrap_or_default()),
            TransactionOutcome::RolledBack(_) => Ok(Rows::new()),
            TransactionOutcome::Failed(_, error) => Err(error.into()),
        }
    }

    async fn operator_schema(&self) -> Result<Arc<Schema>> {
        Ok(self.schema(Deadline::Operator).await?)
    }

    /// The current time, as this database writes it.
    fn now(&self) -> SqlValue {
        self.time(clock::wall())
    }

    fn time(&self, time: OffsetDateTime) -> SqlValue {
        Some(self.statements().timestamp(write_timestamp(time)))
    }
}

/// An INSERT that returns the new row's id. It does nothing if a row already has the same values in all columns of one of
/// the `unless` groups.
fn insert(schema: &Schema, table: &'static str, values: Vec<ColumnValue>, unless: &[&[&str]]) -> Statement {
    let param = |column: &str| {
        let at = values.iter().position(|(name, _)| *name == column);
        at.map(|at| schema.param(at + 1, table, column))
    };
    let relation = schema.relation(table);
    let columns: Vec<_> = values.iter().map(|(column, _)| *column).collect();
    let params: Vec<_> = columns.iter().filter_map(|column| param(column)).collect();
    let guards = unless.iter().filter_map(|group| {
        let same = group.iter().map(|column| Some(format!("{column} = {}", param(column)?)));
        let same = same.collect::<Option<Vec<_>>>()?.join(" AND ");
        Some(format!("NOT EXISTS (SELECT 1 FROM {relation} WHERE {same})"))
    });
    let guards = guards.collect::<Vec<_>>().join(" AND ");
    let sql = format!(
        "INSERT INTO {relation} ({}) SELECT {} WHERE {} RETURNING CAST(id AS text)",
        columns.join(", "),
        params.join(", "),
        if guards.is_empty() { "true" } else { &guards },
    );
    Statement::new(sql, values.into_iter().map(|(_, value)| value).collect::<Vec<_>>())
}

/// An UPDATE of the row with this id. Columns that the table does not have are omitted.
fn update(schema: &Schema, table: &'static str, id: i64, mut values: Vec<ColumnValue>) -> Statement {
    values.retain(|(column, _)| schema.has(table, column));
    let set = values.iter().enumerate();
    let set = set.map(|(at, (column, _))| format!("{column} = {}", schema.param(at + 1, table, column)));
    let set = set.collect::<Vec<_>>().join(", ");
    let id_param = schema.param(values.len() + 1, table, "id");
    let sql = format!(
        "UPDATE {} SET {set} WHERE id = {id_param} RETURNING CAST(id AS text)",
        schema.relation(table)
    );
    let params = values.into_iter().map(|(_, value)| value).chain([Some(id.to_string())]);
    Statement::new(sql, params.collect::<Vec<_>>())
}

fn audit_failed(why: &str) -> ManagementError {
    ManagementError::Refused(format!(
        "nothing was changed, because the audit log keystile_audit cannot record it: {why}; run `keystile migrate` \
         as the owner of the tables"
    ))
}

/// Refuses a setting that has no column.
fn needs_column(schema: &Schema, table: &'static str, column: &str) -> Result<()> {
    if schema.has(table, column) {
        return Ok(());
    }
    Err(ManagementError::Refused(format!(
        "the table {table} has no column {column}, so what you set would be lost; leave it out, or add the column"
    )))
}

fn id(rows: &Rows) -> Option<i64> {
    rows.first()?.first()?.as_deref()?.parse().ok()
}
