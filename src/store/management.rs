//! How operators manage users and keys.

use std::sync::Arc;

use time::OffsetDateTime;

use super::{
    Database, SqlValue, StoreError,
    actor::Action,
    decode::timestamp::write_timestamp,
    schema::Schema,
    statement::{Deadline, Rows, Statement},
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
mod new_key;
mod patch;
mod rotation;
mod row_update;
mod row_version;
mod strict_json;
mod tokens;
mod transaction;
mod users;
mod write;

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
pub use keys::RevokedKeys;
pub use new_key::NewKey;
pub use patch::{Patch, PatchError, Resource};
pub use rotation::{KeyRotation, RotatedKey};
pub use row_version::RowVersion;
pub use tokens::{KeyTemplate, ManagementToken, TokenScope, TokenSecret};
pub use users::NewUser;
use write::{assignments, holds_time, insert, insert_from, update};

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
