//! What the answers of a check rest on, and why it does not work. The one place that turns failures into states.
//!
//! Each component reports to [`States`] through a [`Reporter`], which it takes from [`Metrics`](crate::metrics::Metrics)
//! with its other handles. The states feed the log, `/readyz`, `/stats` and the metrics. Every error type of a component
//! has one exhaustive match that returns its [`Cause`], so the compiler asks for the cause of a new error.

use std::{fmt, ops::Deref, sync::Arc};

mod states;

pub use states::{DependencyState, Reporter, State, States};

/// Something that a check, or the work that follows a check, rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dependency {
    /// Look-ups of keys in the database.
    Database,
    /// The table of budgets, which each look-up reads.
    Budgets,
    /// The log of changes.
    ChangeFeed,
    /// Records and proofs in Redis.
    RedisCache,
    /// Limits that Redis counts.
    RedisLimits,
    /// The threads that run bcrypt, and their queue.
    Bcrypt,
    /// Memory for requests that wait.
    Memory,
    /// Counts of use, written to the database.
    Usage,
    /// Proofs that survive a restart.
    Proofs,
}

impl Dependency {
    /// Every dependency, in the order in which it is reported.
    pub const ALL: [Self; 9] = [
        Self::Database,
        Self::Budgets,
        Self::ChangeFeed,
        Self::RedisCache,
        Self::RedisLimits,
        Self::Bcrypt,
        Self::Memory,
        Self::Usage,
        Self::Proofs,
    ];

    /// The name in the log, in `/readyz` and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Budgets => "budgets",
            Self::ChangeFeed => "change_feed",
            Self::RedisCache => "redis_cache",
            Self::RedisLimits => "redis_limits",
            Self::Bcrypt => "bcrypt",
            Self::Memory => "memory",
            Self::Usage => "usage",
            Self::Proofs => "proofs",
        }
    }

    /// What a fault means for callers.
    pub fn consequence(self) -> &'static str {
        match self {
            Self::Database => "keys that are not in memory get 503",
            Self::Budgets => "keys that are not in memory get 503, because their budgets cannot be read",
            Self::ChangeFeed => "a changed key may be allowed for up to 30 s",
            Self::RedisCache => "Redis is skipped: each instance reads the database and proves keys itself",
            Self::RedisLimits => {
                "rate limits are no longer counted by Redis: each instance lets its part of them through, or keys \
                 with limits get 503"
            }
            Self::Bcrypt => "some keys that are not proven yet get 503 or 429; proven keys are not affected",
            Self::Memory => "some requests with large or slow messages get 503",
            Self::Usage => "the usage of keys is not written; it is kept and tried again",
            Self::Proofs => "proofs are not stored at the moment: their keys need bcrypt after a restart",
        }
    }

    /// What holds while there is no fault.
    pub fn promise(self) -> &'static str {
        match self {
            Self::Database => "keys are looked up in the database",
            Self::Budgets => "budgets are read with each key",
            Self::ChangeFeed => "change feed up: a changed key is denied within 1 s",
            Self::RedisCache => "records and proofs are shared in Redis",
            Self::RedisLimits => "rate limits are counted by Redis",
            Self::Bcrypt => "keys that are not proven yet are proven in time",
            Self::Memory => "there is room for requests that wait",
            Self::Usage => "usage is written",
            Self::Proofs => "proofs are stored",
        }
    }

    /// The setting that leads to it.
    fn setting(self) -> &'static str {
        match self {
            Self::RedisCache | Self::RedisLimits => "--redis-url",
            _ => "--database-url",
        }
    }

    /// The page with the rights that it needs.
    fn rights(self) -> &'static str {
        match self {
            Self::RedisCache | Self::RedisLimits => {
                "give its user the rights in docs/guides/redis.md#rights (redis-cli ACL SETUSER); limits need those of \
                 their scripts too"
            }
            Self::Budgets => "GRANT SELECT ON budgets to the role (docs/guides/database.md)",
            _ => "grant the role the rights in docs/guides/database.md",
        }
    }
}

/// Why a dependency does not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// There is no connection: refused, closed, or no route.
    Unreachable,
    /// The host name has no address.
    NameUnknown,
    /// No answer within the deadline.
    NoAnswer,
    /// The TLS handshake fails, or only one side expects TLS.
    Tls,
    /// The server refuses the user or the password.
    LoginRefused,
    /// The user or role lacks a right.
    AccessDenied,
    /// The tables are missing or do not fit.
    Tables,
    /// The statement or command is refused for another reason.
    Refused,
    /// Another transaction or process holds a lock.
    Locked,
    /// The server accepts no writes: it is a replica, or is loading.
    ReadOnly,
    /// The server has no memory, disk space or connections left.
    Full,
    /// The file cannot be opened, was replaced, or is no database.
    File,
    /// More calls wait than the queue holds.
    TooManyCalls,
    /// More credentials wait to be proven than bcrypt can check in time.
    TooManyProofs,
    /// Waiting requests hold all the memory that they may have.
    NoRoom,
    /// Messages were not complete at their deadline.
    LateMessages,
    /// A bug: the work ended without a result.
    Panicked,
}

impl Cause {
    /// Every cause, in the order in which the runbook lists them.
    pub const ALL: [Self; 17] = [
        Self::Unreachable,
        Self::NameUnknown,
        Self::NoAnswer,
        Self::Tls,
        Self::LoginRefused,
        Self::AccessDenied,
        Self::Tables,
        Self::Refused,
        Self::Locked,
        Self::ReadOnly,
        Self::Full,
        Self::File,
        Self::TooManyCalls,
        Self::TooManyProofs,
        Self::NoRoom,
        Self::LateMessages,
        Self::Panicked,
    ];

    /// The name in the log, in `/readyz`, in metrics and in the runbook.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::NameUnknown => "name_unknown",
            Self::NoAnswer => "no_answer",
            Self::Tls => "tls",
            Self::LoginRefused => "login_refused",
            Self::AccessDenied => "access_denied",
            Self::Tables => "tables",
            Self::Refused => "refused",
            Self::Locked => "locked",
            Self::ReadOnly => "read_only",
            Self::Full => "full",
            Self::File => "file",
            Self::TooManyCalls => "too_many_calls",
            Self::TooManyProofs => "too_many_proofs",
            Self::NoRoom => "no_room",
            Self::LateMessages => "late_messages",
            Self::Panicked => "panicked",
        }
    }

    /// What an operator can do about it.
    pub fn fix(self, dependency: Dependency) -> String {
        let (setting, rights) = (dependency.setting(), dependency.rights());
        match self {
            Self::Unreachable => format!("start the server, or correct host and port in {setting}"),
            Self::NameUnknown => format!("correct the host name in {setting}, or the DNS of this machine"),
            Self::NoAnswer => format!("look at the load of the server and at the network between; {setting} names it"),
            Self::Tls => format!(
                "make {setting} match the server: sslmode and rediss:// ask for TLS, and the authority must be known"
            ),
            Self::LoginRefused => format!("correct user and password in {setting}"),
            Self::AccessDenied => rights.to_owned(),
            Self::Tables => format!("run `keystile migrate`, or correct {setting}"),
            Self::Refused => "see the problem: the server names what it refuses".to_owned(),
            Self::Locked => "end the transaction or process that holds the lock".to_owned(),
            Self::ReadOnly => format!("set {setting} to the primary, or wait until it has loaded"),
            Self::Full => "give the server memory, disk space or connections".to_owned(),
            Self::File => format!("restore the file that {setting} names, and its owner and mode"),
            Self::TooManyCalls => {
                "look at keystile_store_duration_seconds: the server is slow, or --database-connections is too low"
                    .to_owned()
            }
            Self::TooManyProofs => {
                "look at keystile_first_proofs_total: with many mismatch, limit the named network in Envoy; with many \
                 proven, add CPU"
                    .to_owned()
            }
            Self::NoRoom | Self::LateMessages => {
                "look at keystile_messages_refused_total; send bodies only on routes that name a model".to_owned()
            }
            Self::Panicked => "report the bug with the lines before this one".to_owned(),
        }
    }
}

/// Why a dependency does not work, in the words of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The code of the cause.
    pub cause: &'static str,
    /// The error. It contains no secret.
    pub problem: String,
    /// What an operator can do about it.
    pub fix: String,
}

/// The text of an error, and its cause where the place that made the error knows it.
#[derive(Clone, PartialEq, Eq)]
pub struct ErrorText {
    text: Arc<str>,
    cause: Option<Cause>,
}

impl ErrorText {
    /// A text with its cause.
    pub fn new(cause: Cause, text: impl Into<Arc<str>>) -> Self {
        Self { text: text.into(), cause: Some(cause) }
    }

    /// The cause, or this one where none is known.
    pub fn cause_or(&self, cause: Cause) -> Cause {
        self.cause.unwrap_or(cause)
    }
}

impl<T: Into<Arc<str>>> From<T> for ErrorText {
    fn from(text: T) -> Self {
        Self { text: text.into(), cause: None }
    }
}

impl Deref for ErrorText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for ErrorText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for ErrorText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_distinct_and_each_cause_has_a_fix_for_each_dependency() {
        let names: BTreeSet<_> = Dependency::ALL.map(Dependency::name).into();
        assert_eq!(names.len(), Dependency::ALL.len());
        let causes: BTreeSet<_> = Cause::ALL.map(Cause::name).into();
        assert_eq!(causes.len(), Cause::ALL.len());
        for dependency in Dependency::ALL {
            assert_eq!(Dependency::ALL[dependency as usize], dependency);
            for cause in Cause::ALL {
                assert!(cause.fix(dependency).len() > 20, "{cause:?} {dependency:?}");
            }
        }
    }
}
