//! Errors of calls to Redis.

use std::sync::Arc;

use fred::error::ErrorKind;

use crate::resilience::{CallError, Rejected};

/// Why a call to Redis has no result. The text names the cause for an operator, and contains no secret.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RedisError {
    /// The call was not made, or its deadline passed.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// Redis cannot be reached, or the connection was lost.
    #[error("{0}")]
    Unavailable(Arc<str>),
    /// Redis answers, but cannot serve calls: it is a replica, or is not ready. The client disconnects and tries
    /// another server.
    #[error("{0}")]
    NotServing(Arc<str>),
    /// Redis answers with a refusal.
    #[error("it refuses: {0}")]
    Refused(Arc<str>),
}

/// The name in metrics.
pub const STORE: &str = "redis";

/// Error codes of a server that cannot serve calls.
const NOT_SERVING: [&str; 3] = ["READONLY", "LOADING", "MASTERDOWN"];

impl From<fred::error::Error> for RedisError {
    fn from(error: fred::error::Error) -> Self {
        let words: Arc<str> = error.details().into();
        // Before version 7, the error of a script has the code after some words of the script's own and a hyphen.
        if words.split([' ', '-']).any(|word| NOT_SERVING.contains(&word)) {
            return Self::NotServing(words);
        }
        match error.kind() {
            // Errors about a command, not about the server.
            ErrorKind::InvalidCommand
            | ErrorKind::InvalidArgument
            | ErrorKind::Parse
            | ErrorKind::NotFound
            | ErrorKind::Unknown => Self::Refused(words),
            ErrorKind::Timeout => Self::Unavailable("no answer in time".into()),
            _ => Self::Unavailable(words),
        }
    }
}

impl CallError for RedisError {
    fn is_outage(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}
