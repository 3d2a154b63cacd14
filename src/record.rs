//! The data of one key and its user, decoded from the database.

use std::fmt;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::credential::Prefix;

mod allowed;
mod budget;
mod chain;
pub mod endpoint;
mod hash;
pub mod hash_form;
pub mod loose_path;
pub mod model;
pub mod network;
pub mod path;
mod period_budget;
pub mod unmatchable;

pub use allowed::{AllowList, Restrictions};
pub use budget::{Budget, PERIODS};
pub use chain::{Chain, ChainMember, Rotation};
pub use hash::{BcryptHash, HashKind, HashTag, KeyHash, Sha256Hash, UnacceptedHash};
pub use period_budget::{BudgetId, PeriodBudget, PeriodBudgets, SharedUsage, UnreadableBudget};

#[cfg(test)]
pub(crate) mod fixtures;

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
    /// The owner's name for the key.
    pub name: Option<String>,
    /// The prefix that identifies the row.
    pub prefix: Prefix,
    /// The hash that a credential is proven against.
    pub hash: KeyHash,
    /// False if revoked; NULL counts as false.
    pub is_active: bool,
    /// Whether `deleted_at` has any value, readable or not.
    pub is_deleted: bool,
    /// Expiry time of the key.
    pub expiry: Expiry,
    /// The user that the key belongs to.
    pub user: User,
    /// The scopes of the key. An empty list grants no scope.
    pub scopes: Vec<String>,
    /// Labels. Only `keystile:shadow` affects a decision.
    pub tags: Vec<String>,
    /// Free-form JSON for the upstream, in compact form.
    pub permissions: Option<String>,
    /// The addresses, endpoints, models, chatbots, agents and templates that the key may be used with.
    pub allowed: Restrictions,
    /// The rate limits of the key.
    pub limits: Limits,
    /// The first key of the chain that this key belongs to. Requests with every key of the chain count against limits
    /// under its id.
    pub limit_id: KeyId,
    /// The keys that it was rotated from and to. None for a key that was never rotated.
    pub chain: Option<Box<Chain>>,
    /// The key's own budget.
    pub budget: Budget,
    /// The budgets of a period: for this key alone, or shared with its user's other keys.
    pub period_budgets: PeriodBudgets,
}

/// A record as a store returns it: the record alone, or together with data that an adapter keeps for as long as the
/// record lives.
pub trait StoredRecord: From<KeyRecord> + Clone + Send + Sync + 'static {
    /// The record itself.
    fn record(&self) -> &KeyRecord;
}

/// One row of `users`, with the columns that a decision or an upstream needs.
#[derive(Debug, Clone, PartialEq)]
pub struct User {
    /// Primary key of the row.
    pub id: UserId,
    /// `username`.
    pub name: Option<String>,
    /// `email`.
    pub email: Option<String>,
    /// `role`, or the name in `roles` that `role_id` refers to.
    pub role: Option<String>,
    /// NULL counts as false.
    pub is_active: bool,
    /// Sent to the upstream. Has no effect in Keystile.
    pub is_superuser: bool,
    /// Whether the account is locked, and until when.
    pub lock: Lock,
}

/// The expiry time of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// NULL or `infinity`.
    Never,
    /// The key is expired from this instant on.
    At(OffsetDateTime),
    /// `-infinity`.
    Always,
}

/// Whether an account is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// The account is not locked.
    Open,
    /// Until this instant.
    Until(OffsetDateTime),
    /// Locked without an end.
    Closed,
    /// Locked or not: locks do not stop keys (`KEYSTILE_ACCOUNT_LOCK=ignore`).
    Ignored,
}

/// Requests per window. `None` means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// `rate_limit_per_minute`.
    pub minute: Option<u64>,
    /// `rate_limit_per_hour`.
    pub hour: Option<u64>,
    /// `rate_limit_per_day`.
    pub day: Option<u64>,
}

impl KeyRecord {
    /// The rotation that ends this key, if it was rotated.
    pub fn successor(&self) -> Option<Rotation> {
        self.chain.as_ref()?.successor
    }
}

impl StoredRecord for KeyRecord {
    fn record(&self) -> &KeyRecord {
        self
    }
}

impl Expiry {
    /// Whether the key is expired at `now`.
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
            Self::Open | Self::Ignored => false,
            Self::Until(end) => now < end,
            Self::Closed => true,
        }
    }
}

/// Formats a time as in RFC 3339.
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
            Self::Ignored => f.write_str("ignored (KEYSTILE_ACCOUNT_LOCK)"),
        }
    }
}
