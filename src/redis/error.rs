//! Errors of calls to Redis.

use std::sync::Arc;

use fred::error::ErrorKind;

use crate::resilience::{CallError, Rejected};

/// Why Redis has no answer. Its text names what an operator can mend, and no secret.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RedisError {
    /// The call was not made, or not waited for.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// Redis cannot be reached, or broke off.
    #[error("{0}")]
    Unavailable(Arc<str>),
    /// Redis answers, but is not the server to ask: a replica, or one that is not ready. It is left for another.
    #[error("{0}")]
    NotServing(Arc<str>),
    /// Redis answers, and refuses.
    #[error("it refuses: {0}")]
    Refused(Arc<str>),
}

/// The name in metrics.
pub const STORE: &str = "redis";

/// How a server says that it is not the one to ask.
const NOT_SERVING: [&str; 3] = ["READONLY", "LOADING", "MASTERDOWN"];

impl From<fred::error::Error> for RedisError {
    fn from(error: fred::error::Error) -> Self {
        let words: Arc<str> = error.details().into();
        // Before version 7, a script's error has what it says behind words of its own and a hyphen.
        if words.split([' ', '-']).any(|word| NOT_SERVING.contains(&word)) {
            return Self::NotServing(words);
        }
        match error.kind() {
            // What the server says of a command, rather than of itself.
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
