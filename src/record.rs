//! What the database says about one key and the user it belongs to, decoded.

use std::fmt;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::credential::Prefix;

mod allowed;
mod budget;
pub mod endpoint;
mod hash;
pub mod loose_path;
pub mod model;
pub mod network;
pub mod path;
mod period_budget;

pub use allowed::{AllowList, Allowed};
pub use budget::Budget;
pub use hash::{HashTag, KeyHash, UnacceptedHash};
pub use period_budget::{BudgetId, PeriodBudget, PeriodBudgets, UnreadableBudget};

#[cfg(test)]
pub(crate) mod sample;

/// `api_keys.id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub i64);

/// `users.id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(pub i64);

/// One row of `api_keys` joined with its row of `users`.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyRecord {
    /// Primary key of the row.
    pub id: KeyId,
    /// What the key's owner calls it.
    pub name: Option<String>,
    /// What the row is found by.
    pub prefix: Prefix,
    /// What a credential is proven against.
    pub hash: KeyHash,
    /// False when revoked; NULL counts as false.
    pub is_active: bool,
    /// Whether `deleted_at` has any value, readable or not.
    pub is_deleted: bool,
    /// When the key stops to work.
    pub expiry: Expiry,
    /// Whose key it is.
    pub user: User,
    /// What the key may do; none means none.
    pub scopes: Vec<String>,
    /// Labels without meaning to a decision.
    pub tags: Vec<String>,
    /// Free-form JSON for the upstream, compact.
    pub permissions: Option<String>,
    /// Where and with what the key may be used.
    pub allowed: Allowed,
    /// How often the key may be used.
    pub limits: Limits,
    /// How much the key may spend.
    pub budget: Budget,
    /// What it may spend in a time, alone or together with its user's other keys.
    pub period_budgets: PeriodBudgets,
}

/// A record as a store hands it out: alone, or with what an adapter keeps of it for as long as the record lives.
pub trait StoredRecord: From<KeyRecord> + Clone + Send + Sync + 'static {
    /// The record itself.
    fn record(&self) -> &KeyRecord;
}

/// One row of `users`, as far as a decision or an upstream needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct User {
    /// Primary key of the row.
    pub id: UserId,
    /// `username`.
    pub name: Option<String>,
    /// `email`.
    pub email: Option<String>,
    /// `role`, or the name in `roles` that `role_id` points to.
    pub role: Option<String>,
    /// NULL counts as false.
    pub is_active: bool,
    /// Sent to the upstream; has no effect in Keystile.
    pub is_superuser: bool,
    /// Whether the account is locked, and until when.
    pub lock: Lock,
}

/// When a key stops to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// NULL or `infinity`.
    Never,
    /// At this instant it is expired already.
    At(OffsetDateTime),
    /// `-infinity`.
    Always,
}

/// Whether an account is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// It is not.
    Open,
    /// Until this instant.
    Until(OffsetDateTime),
    /// Until somebody unlocks it.
    Closed,
}

/// Requests per window; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// `rate_limit_per_minute`.
    pub minute: Option<u64>,
    /// `rate_limit_per_hour`.
    pub hour: Option<u64>,
    /// `rate_limit_per_day`.
    pub day: Option<u64>,
}

impl StoredRecord for KeyRecord {
    fn record(&self) -> &KeyRecord {
        self
    }
}

impl Expiry {
    /// Whether the key has stopped to work at `now`.
    pub fn is_past(self, now: OffsetDateTime) -> bool {
        match self {
            Self::Never => false,
            Self::At(end) => now >= end,
            Self::Always => true,
        }
    }
}

impl Lock {
    /// Whether the account is locked at `now`.
    pub fn holds(self, now: OffsetDateTime) -> bool {
        match self {
            Self::Open => false,
            Self::Until(end) => now < end,
            Self::Closed => true,
        }
    }
}

/// A time as RFC 3339 writes it.
pub fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::At(end) => f.write_str(&rfc3339(*end)),
            Self::Always => f.write_str("-infinity"),
        }
    }
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("no"),
            Self::Until(end) => write!(f, "until {}", rfc3339(*end)),
            Self::Closed => f.write_str("yes"),
        }
    }
}
