//! The meaning of Postgres' errors, by their SQLSTATE.

use std::{error::Error as _, future::Future, time::Duration};

use tokio::time::timeout;
use tokio_postgres::error::SqlState;

use crate::{
    dependencies::{Cause, ErrorText},
    store::StoreError,
};

/// Ends the work with [`StoreError::Timeout`] after this time.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(limit, work).await.unwrap_or(Err(StoreError::Timeout(limit)))
}

/// Whether the connection ended before the statement ran: it is closed, or the server reports that it shuts down
/// (class 57P).
pub(super) fn is_disconnect(error: &tokio_postgres::Error) -> bool {
    error.is_closed() || error.code().is_some_and(|code| code.code().starts_with("57P"))
}

/// Whether the server refuses writes: it is a standby, or configured to be read-only. Nothing was changed.
pub(super) fn is_read_only(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
}

/// Whether the server refuses this user (class 28), or has no such database: others would say the same.
pub(super) fn refuses_login(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code().starts_with("28") || *code == SqlState::INVALID_CATALOG_NAME)
}

/// The error that a failed attempt to connect is to its caller.
pub(super) fn unavailable(error: &tokio_postgres::Error) -> StoreError {
    StoreError::Unavailable(words(error))
}

/// The error classes of the server, its state and its locks. All others concern the statement: types, constraints,
/// rights, and errors that triggers raise, whose classes are arbitrary.
const SERVER_CLASSES: [&str; 10] = ["08", "25", "40", "53", "55", "57", "58", "F0", "HV", "XX"];

/// The error that a failed statement is to its caller.
pub(super) fn explain(error: &tokio_postgres::Error) -> StoreError {
    let words = words(error);
    if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) {
        return StoreError::Locked(words);
    }
    match error.code().map(|code| code.code().get(..2).unwrap_or_default()) {
        Some(class) if !SERVER_CLASSES.contains(&class) => StoreError::Unfit(ErrorText::new(
            words.cause_or(Cause::Refused),
            format!("the database refuses: {words}"),
        )),
        _ => StoreError::Unavailable(words),
    }
}

/// The error's message. The server's DETAIL is omitted: it repeats values, and one of them may be a hash.
fn words(error: &tokio_postgres::Error) -> ErrorText {
    let text = match (error.as_db_error(), error.source()) {
        (Some(db), _) => format!("{} (SQLSTATE {})", db.message(), db.code().code()),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    };
    match cause(error) {
        Some(cause) => ErrorText::new(cause, text),
        None => text.into(),
    }
}

/// The cause by the SQLSTATE, or by the error that the connection failed with.
fn cause(error: &tokio_postgres::Error) -> Option<Cause> {
    let Some(code) = error.code() else {
        let mut source = error.source();
        while let Some(inner) = source {
            if inner.is::<rustls::Error>() {
                return Some(Cause::Tls);
            }
            let of_io = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            if of_io.is_some_and(|inner| inner.is::<rustls::Error>()) {
                return Some(Cause::Tls);
            }
            source = inner.source();
        }
        return None;
    };
    match *code {
        SqlState::INSUFFICIENT_PRIVILEGE => Some(Cause::AccessDenied),
        SqlState::UNDEFINED_TABLE
        | SqlState::UNDEFINED_COLUMN
        | SqlState::UNDEFINED_FUNCTION
        | SqlState::INVALID_SCHEMA_NAME
        | SqlState::INVALID_CATALOG_NAME => Some(Cause::Tables),
        SqlState::READ_ONLY_SQL_TRANSACTION => Some(Cause::ReadOnly),
        SqlState::QUERY_CANCELED => Some(Cause::NoAnswer),
        _ => match code.code().get(..2).unwrap_or_default() {
            "28" => Some(Cause::LoginRefused),
            "53" => Some(Cause::Full),
            _ => None,
        },
    }
}
