//! What a backend runs: statements, and how a transaction of them ends. All values are text, in and out.

use std::sync::Arc;

use super::{Row, SqlValue, StoreError};

/// The rows that a statement returned.
pub(crate) type Rows = Vec<Row>;

/// A statement and its parameters.
#[derive(Clone)]
pub(crate) struct Statement {
    pub(crate) sql: Arc<str>,
    pub(crate) params: Vec<SqlValue>,
    /// Whether a rollback does not undo it, so that it is skipped once another statement of its transaction failed.
    pub(crate) is_final: bool,
    /// Whether it must return a row, even where those of its transaction need not.
    pub(crate) is_required: bool,
}

/// How long a statement may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deadline {
    /// A check waits for it: the database timeout.
    Check,
    /// An operator or a background task waits for it, and it may read every row: 30 s at least.
    Operator,
}

/// What a connection may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    ReadWrite,
    /// Nothing is written, and no file is created.
    ReadOnly,
}

/// How a transaction ended.
pub(crate) enum TransactionOutcome {
    /// Every statement returned a row, where rows were needed. The rows of each statement.
    Committed(Vec<Rows>),
    /// The statements at these places returned no row. Nothing was changed.
    RolledBack(Vec<usize>),
    /// The statement at this place failed. Nothing was changed.
    Failed(usize, StoreError),
}

/// The next step of a transaction, decided from the rows of the previous statement.
pub(crate) enum Step<T> {
    /// Run this statement.
    Run(Statement),
    /// Commit. The transaction then returns this.
    Commit(T),
    /// Roll back, because there is nothing to change. The transaction then returns this.
    Abandon(T),
}

/// Receives the number of statements of a transaction that are done.
pub(crate) type Progress = Box<dyn Fn(usize) + Send + Sync>;

impl Statement {
    pub(crate) fn new(sql: impl Into<Arc<str>>, params: impl Into<Vec<SqlValue>>) -> Self {
        Self { sql: sql.into(), params: params.into(), is_final: false, is_required: false }
    }

    /// A statement without parameters.
    pub(crate) fn plain(sql: impl Into<Arc<str>>) -> Self {
        Self::new(sql, [])
    }

    /// The same, to be skipped once another statement of its transaction failed.
    pub(crate) fn final_in_transaction(self) -> Self {
        Self { is_final: true, ..self }
    }

    /// The same, without whose row its transaction fails.
    pub(crate) fn required(self) -> Self {
        Self { is_required: true, ..self }
    }
}

impl TransactionOutcome {
    /// The error of a transaction that needs no rows.
    pub(crate) fn into_result(self) -> Result<(), StoreError> {
        match self {
            Self::Failed(_, error) => Err(error),
            Self::Committed(_) | Self::RolledBack(_) => Ok(()),
        }
    }
}

/// The first value of the first row.
pub(crate) fn first_value(rows: Rows) -> SqlValue {
    rows.into_iter().next()?.into_iter().next()?
}

/// The connections to a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionCounts {
    /// Those that run a statement.
    pub(crate) used: u32,
    /// Open ones that do not.
    pub(crate) idle: u32,
    pub(crate) limit: u32,
}
