//! What a failure of Postgres means.

use std::{error::Error as _, future::Future, sync::Arc, time::Duration};

use tokio::time::timeout;
use tokio_postgres::error::SqlState;

use crate::store::StoreError;

/// Waits no longer than this.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(limit, work).await.unwrap_or(Err(StoreError::Timeout(limit)))
}

/// Whether the connection was gone before the question was: the server says so (class 57P, shutdown
/// and the like) in place of an answer, or nothing at all.
pub(super) fn died(error: &tokio_postgres::Error) -> bool {
    error.is_closed() || error.code().is_some_and(|code| code.code().starts_with("57P"))
}

/// Whether the server takes no writes: it is a standby, or was told to be read-only. Nothing was changed.
pub(super) fn is_read_only(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
}

/// Whether the server refuses this user (class 28), or has no such database: others would say the same.
pub(super) fn refuses_login(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code().starts_with("28") || *code == SqlState::INVALID_CATALOG_NAME)
}

pub(super) fn unavailable(error: &tokio_postgres::Error) -> StoreError {
    StoreError::Unavailable(words(error))
}

/// These classes are about the server, its state and its locks. All others are about what was asked: types,
/// constraints, rights, and what triggers raise, which may be of a class that nobody knows.
const OF_THE_SERVER: [&str; 10] = ["08", "25", "40", "53", "55", "57", "58", "F0", "HV", "XX"];

pub(super) fn explain(error: &tokio_postgres::Error) -> StoreError {
    let words = words(error);
    if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) {
        return StoreError::Locked(words);
    }
    match error.code().map(|code| code.code().get(..2).unwrap_or_default()) {
        Some(class) if !OF_THE_SERVER.contains(&class) => {
            StoreError::Unfit(format!("the database refuses: {words}").into())
        }
        _ => StoreError::Unavailable(words),
    }
}

/// What went wrong, without the server's DETAIL, which repeats values: a hash may be among them.
fn words(error: &tokio_postgres::Error) -> Arc<str> {
    match (error.as_db_error(), error.source()) {
        (Some(db), _) => format!("{} (SQLSTATE {})", db.message(), db.code().code()).into(),
        (None, Some(source)) => format!("{error}: {source}").into(),
        (None, None) => error.to_string().into(),
    }
}
