//! How operators manage users and keys.

use std::{collections::VecDeque, sync::Arc};

use time::OffsetDateTime;

use super::{
    Database, SqlValue, StoreError,
    actor::Action,
    decode::timestamp::write_timestamp,
    schema::Schema,
    statement::{Deadline, Progress, Rows, Statement, Step, TransactionOutcome},
};
use crate::clock;

mod audit;
mod budgets;
mod bulk_revocation;
mod chain;
mod change;
mod columns;
mod display_row;
mod idempotency;
mod import;
mod key_filter;
mod key_page;
mod keys;
mod patch;
mod rotation;
mod row_update;
mod row_version;
mod strict_json;
mod tokens;
mod users;

pub use audit::{AuditFilter, AuditPage, AuditPosition};
pub use budgets::UnreadBudget;
pub use bulk_revocation::BulkRevocation;
pub use change::{Change, Difference};
pub use display_row::DisplayRow;
pub use idempotency::{IDEMPOTENCY_LIFETIME, IdempotencyClaim, IdempotencyRecord};
pub use import::{
    ExportedUser, ImportError, ImportOptions, ImportProgress, ImportRow, ImportStep, Imported, OwnerRule,
};
pub use key_filter::{KeyFilter, KeyState};
pub use key_page::{KeyPage, KeySort, PageCursor, PageRequest};
pub use keys::{NewKey, RevokedKeys};
pub use patch::{Patch, PatchError, Resource};
pub use rotation::{KeyRotation, RotatedKey};
pub use row_version::RowVersion;
pub use tokens::{KeyTemplate, ManagementToken, TokenScope, TokenSecret};
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
    let (resource, more) = match table {
        "api_keys" => (Resource::Key, ["updated_at", "deleted_at"]),
        "users" => (Resource::User, ["updated_at", "role_id"]),
        _ => return Vec::new(),
    };
    resource.fields().chain(more).collect()
}

/// Why an operation failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ManagementError {
    /// The database failed, or refused it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A field of a change is wrong.
    #[error(transparent)]
    Patch(#[from] PatchError),
    /// The row is no longer of the version that the caller has seen.
    #[error("the {noun} was changed in between: its version is {current}; read it again")]
    VersionMismatch {
        /// What the row is.
        noun: &'static str,
        /// Its version now.
        current: RowVersion,
    },
    /// A request with the same idempotency key was carried out before.
    #[error("a request with the same idempotency key was carried out before")]
    AlreadyDone,
    /// It is not possible. The text says why, and what to do.
    #[error("{0}")]
    Refused(String),
}

/// The members of a JSON object, none of which is there twice.
///
/// # Errors
/// [`PatchError`] when the text is none.
pub fn json_object(text: &[u8]) -> Result<serde_json::Map<String, serde_json::Value>, PatchError> {
    strict_json::object(text).map_err(|problem| PatchError { field: None, problem })
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

    /// Makes a change whose statements are decided one by one, in one transaction: `next` gets the rows of the previous
    /// one. The first statement locks the rows that are changed.
    async fn decide_change<T: Send + 'static>(
        &self,
        action: Action,
        first: Statement,
        mut next: impl FnMut(Rows) -> Result<Step<T>> + Send + 'static,
    ) -> Result<T> {
        // The tables may have been migrated since they were read.
        self.forget_tables();
        let schema = self.operator_schema().await?;
        let claim = self.claim().map(|claim| claim.insert(self.statements()));
        let mut is_claim = claim.is_some();
        let mut queued: VecDeque<_> = claim.into_iter().collect();
        queued.extend(self.statements().begin_change(&schema, self.actor(), action));
        queued.push_back(first.clone());
        let mut end = self.statements().end_change(&schema);
        let first = queued.pop_front().unwrap_or(first);
        let (mut is_required, mut result) = (first.is_required, None);
        let step = move |rows: Rows| {
            if std::mem::take(&mut is_claim) && rows.is_empty() {
                return Err(ManagementError::AlreadyDone);
            }
            if is_required && rows.is_empty() {
                return Err(audit_failed("its triggers are missing or of another version"));
            }
            if let Some(value) = result.take() {
                return Ok(Step::Commit(value));
            }
            let statement = match queued.pop_front() {
                Some(statement) => statement,
                None => match (next(rows)?, end.take()) {
                    (Step::Run(statement), kept) => {
                        end = kept;
                        statement
                    }
                    (Step::Commit(value), Some(statement)) => {
                        result = Some(value);
                        statement
                    }
                    (Step::Commit(value), None) => return Ok(Step::Commit(value)),
                    (Step::Abandon(value), _) => return Ok(Step::Abandon(value)),
                },
            };
            is_required = statement.is_required;
            Ok(Step::Run(statement))
        };
        self.backend().transact(first, step).await
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
        let claim =
            self.claim().map(|claim| Statement { is_required: true, ..claim.insert(self.statements()) });
        let has_claim = claim.is_some();
        let mut before: Vec<_> = claim.into_iter().collect();
        before.extend(self.statements().begin_change(&schema, self.actor(), action));
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
            TransactionOutcome::RolledBack(places) if has_claim && places.contains(&0) => {
                Err(ManagementError::AlreadyDone)
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

    /// The same for one statement. If it returns no row, nothing is changed.
    async fn change_by(&self, action: Action, statement: Statement) -> Result<Rows> {
        let (mut subject, mut made) = (self.subject(action), None);
        self.decide_change(action, statement, move |rows| {
            if let Some(made) = made.take() {
                return Ok(Step::Commit(made));
            }
            let Some(id) = id(&rows) else { return Ok(Step::Abandon(rows)) };
            let Some(subject) = subject.take() else { return Ok(Step::Commit(rows)) };
            made = Some(rows);
            Ok(Step::Run(subject(id)))
        })
        .await
    }

    /// What records the row that this change creates, if it is a request with an idempotency key.
    fn subject(&self, action: Action) -> Option<impl FnOnce(i64) -> Statement + Send + use<>> {
        let claim = self.claim().filter(|_| action == Action::Create)?;
        let statements = self.statements();
        Some(move |id| claim.with_subject(statements, id))
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
    insert_from(schema, table, values, unless, |_, _| None)
}

/// The same. `expression` returns what a column gets in place of the parameter of this number.
fn insert_from(
    schema: &Schema,
    table: &'static str,
    values: Vec<ColumnValue>,
    unless: &[&[&str]],
    expression: impl Fn(&str, usize) -> Option<String>,
) -> Statement {
    let param = |column: &str| {
        let at = values.iter().position(|(name, _)| *name == column);
        at.map(|at| expression(column, at + 1).unwrap_or_else(|| schema.param(at + 1, table, column)))
    };
    let relation = schema.relation(table);
    let columns: Vec<_> = values.iter().map(|(column, _)| *column).collect();
    let params: Vec<_> = columns.iter().filter_map(|column| param(column)).collect();
    let guards = unless.iter().filter_map(|group| {
        let same =
            group.iter().map(|column| Some(format!("{} = {}", schema.name(table, column), param(column)?)));
        let same = same.collect::<Option<Vec<_>>>()?.join(" AND ");
        Some(format!("NOT EXISTS (SELECT 1 FROM {relation} WHERE {same})"))
    });
    let guards = guards.collect::<Vec<_>>().join(" AND ");
    let sql = format!(
        "INSERT INTO {relation} ({}) SELECT {} WHERE {} RETURNING CAST({} AS text)",
        columns.iter().map(|column| schema.name(table, column)).collect::<Vec<_>>().join(", "),
        params.join(", "),
        if guards.is_empty() { "true" } else { &guards },
        schema.name(table, "id"),
    );
    Statement::new(sql, values.into_iter().map(|(_, value)| value).collect::<Vec<_>>())
}

/// An UPDATE of the row with this id, which returns its id. Columns that the table does not have are omitted.
fn update(schema: &Schema, table: &'static str, id: i64, mut values: Vec<ColumnValue>) -> Statement {
    values.retain(|(column, _)| schema.has(table, column));
    let assignments = assignments(schema, table, &values, 0);
    let id_param = schema.param(values.len() + 1, table, "id");
    let id_column = schema.name(table, "id");
    let sql = format!(
        "UPDATE {} SET {assignments} WHERE {id_column} = {id_param} RETURNING CAST({id_column} AS text)",
        schema.relation(table)
    );
    let params = values.into_iter().map(|(_, value)| value).chain([Some(id.to_string())]);
    Statement::new(sql, params.collect::<Vec<_>>())
}

/// The SET clause of these columns, whose parameters come after `offset` others.
fn assignments(schema: &Schema, table: &'static str, values: &[ColumnValue], offset: usize) -> String {
    let set = values.iter().enumerate().map(|(at, (column, _))| {
        format!("{} = {}", schema.name(table, column), schema.param(offset + at + 1, table, column))
    });
    set.collect::<Vec<_>>().join(", ")
}

/// Whether the database stores times in this column: one of another type holds something that the application computes.
fn holds_time(schema: &Schema, table: &str, column: &str) -> bool {
    let kind = schema.kind(table, column).map(str::to_ascii_lowercase);
    let is_time = |kind: &String| ["time", "date", "text", "char"].iter().any(|part| kind.contains(part));
    kind.as_ref().is_some_and(is_time) && !schema.is_generated(table, column)
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
