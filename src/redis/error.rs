//! Errors of calls to Redis.

use fred::error::ErrorKind;

use crate::{
    dependencies::{Cause, ErrorText},
    resilience::{CallError, Rejected},
};

/// Why a call to Redis has no result. The text names the cause for an operator, and contains no secret.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RedisError {
    /// The call was not made, or its deadline passed.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// Redis cannot be reached, or the connection was lost.
    #[error("{0}")]
    Unavailable(ErrorText),
    /// Redis answers, but cannot serve calls: it is a replica, or is not ready. The client disconnects and tries
    /// another server.
    #[error("{0}")]
    NotServing(ErrorText),
    /// Redis answers with a refusal.
    #[error("it refuses: {0}")]
    Refused(ErrorText),
}

/// The name in metrics.
pub const STORE: &str = "redis";

/// Error codes of a server that cannot serve calls.
const NOT_SERVING: [&str; 3] = ["READONLY", "LOADING", "MASTERDOWN"];

impl From<fred::error::Error> for RedisError {
    fn from(error: fred::error::Error) -> Self {
        let words = ErrorText::new(cause(&error), text(&error));
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
            ErrorKind::Timeout => Self::Unavailable(ErrorText::new(Cause::NoAnswer, "no answer in time")),
            _ => Self::Unavailable(words),
        }
    }
}

impl CallError for RedisError {
    fn is_outage(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }

    fn cause(&self) -> Cause {
        match self {
            Self::Rejected(Rejected::Timeout(_)) => Cause::NoAnswer,
            Self::Rejected(Rejected::QueueFull) => Cause::TooManyCalls,
            Self::Rejected(Rejected::BreakerOpen(text)) | Self::Unavailable(text) => {
                text.cause_or(Cause::Unreachable)
            }
            Self::NotServing(_) => Cause::ReadOnly,
            Self::Refused(text) => text.cause_or(Cause::Refused),
        }
    }
}

impl RedisError {
    /// The text for an operator. The same for each call that fails for one reason.
    pub fn problem(&self) -> String {
        match self {
            Self::Rejected(Rejected::BreakerOpen(last)) => last.to_string(),
            error => error.to_string(),
        }
    }
}

/// The client keeps an I/O error only as its `Debug` text, such as `Os { code: 111, kind: ConnectionRefused, message:
/// "Connection refused" }` or `Custom { kind: InvalidData, error: InvalidCertificate(UnknownIssuer) }`.
fn text(error: &fred::error::Error) -> String {
    let details = error.details();
    let inner = |name: &str| Some(details.split_once(name)?.1.trim_end_matches([' ', '}']).trim_matches('"'));
    match inner(" message: ").or_else(|| inner(" error: ")).filter(|_| *error.kind() == ErrorKind::IO) {
        Some(inner) if is_tls(error) => format!("the TLS handshake failed: {inner}"),
        Some(inner) => inner.to_owned(),
        None => details.to_owned(),
    }
}

/// Whether the error is one of the TLS handshake.
fn is_tls(error: &fred::error::Error) -> bool {
    let is_invalid = *error.kind() == ErrorKind::IO && error.details().contains("kind: InvalidData");
    is_invalid || *error.kind() == ErrorKind::Tls
}

/// The cause of an error, by the code that the server's answer begins with, and else by its kind.
fn cause(error: &fred::error::Error) -> Cause {
    let code = error.details().split(' ').next().unwrap_or_default();
    match (code, error.kind()) {
        ("NOAUTH" | "WRONGPASS", _) | (_, ErrorKind::Auth) => Cause::LoginRefused,
        ("NOPERM", _) => Cause::AccessDenied,
        ("OOM" | "MISCONF", _) => Cause::Full,
        ("READONLY" | "LOADING" | "MASTERDOWN", _) => Cause::ReadOnly,
        _ if is_tls(error) => Cause::Tls,
        (_, ErrorKind::Timeout) => Cause::NoAnswer,
        (
            _,
            ErrorKind::InvalidCommand
            | ErrorKind::InvalidArgument
            | ErrorKind::Parse
            | ErrorKind::NotFound
            | ErrorKind::Unknown,
        ) => Cause::Refused,
        _ => Cause::Unreachable,
    }
}
