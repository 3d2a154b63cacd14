//! The store of key records: one trait, and the tiers that implement it.
//!
//! Each tier reads from the next one: [`Memory`] from [`RedisTier`] where there is Redis, and both from a [`Database`].
//! Operators manage users and keys through the [`Database`] as well.
//!
//! A database has one of two backends. Each backend owns its SQL: `postgres` and `sqlite` implement the traits of
//! `dialect` and `statements`, and only `backend` tells them apart.

use std::{future::Future, sync::Arc, time::Duration};

use crate::{
    clock::Timestamps,
    credential::Prefix,
    decision::{Proven, Tier},
    dependencies::{Cause, ErrorText},
    proof::Proof,
    record::{KeyRecord, StoredRecord},
    resilience::{CallError, Rejected},
    revocation::LogPosition,
};

mod actor;
mod audit;
mod audited_tables;
mod backend;
mod change_log;
mod database;
mod decode;
mod dialect;
mod grants;
mod inspection;
mod look_up;
mod lower_tier;
mod management;
mod memory;
mod migrate;
mod postgres;
mod proofs;
mod redis;
mod schema;
mod sqlite;
mod statement;
mod statements;
mod usage;
mod watched_tables;

pub use actor::{Action, Actor};
pub use change_log::MAX_ENTRIES;
pub use database::Database;
pub use decode::{
    timestamp::{expiry, timestamp, write_timestamp},
    value::allow_list,
};
pub use inspection::{FindingKind, Inspection, InspectionProgress};
pub use lower_tier::LowerTier;
pub use management::{
    AuditFilter, AuditPage, AuditPosition, BulkRevocation, Change, Difference, DisplayRow, ExportedUser,
    IDEMPOTENCY_LIFETIME, IdempotencyClaim, IdempotencyRecord, ImportError, ImportOptions, ImportProgress,
    ImportRow, ImportStep, Imported, KeyFilter, KeyPage, KeyRotation, KeySort, KeyState, KeyTemplate,
    ManagementError, ManagementToken, NewKey, NewUser, OwnerRule, PageCursor, PageRequest, Patch, PatchError,
    Resource, RevokedKeys, RotatedKey, RowVersion, TokenScope, TokenSecret, UnreadBudget, json_object,
};
pub use memory::{Memory, MemoryConfig};
pub use migrate::{LogInstallation, Migration};
pub use postgres::{Confirmation, Confirmations};
pub use proofs::{DatabaseWithProofs, InvalidProof, ProofSeals, StoredProof};
pub use redis::{RedisTier, RedisTierConfig, envelope};
pub use usage::UsageTable;

/// Finds the records that a credential might belong to. `R` is how it hands them out.
pub trait KeyStore<R: StoredRecord = KeyRecord>: Send + Sync + 'static {
    /// All records whose prefix is `prefix`, newest first, at most [`MAX_RECORDS`].
    ///
    /// No record is an answer, not an error: the prefix is unknown.
    fn records(
        &self,
        prefix: Prefix,
        now: Timestamps,
    ) -> impl Future<Output = Result<Arc<Lookup<R>>, StoreError>> + Send;

    /// The same, with the hash in every record, which bcrypt needs. Redis has no hashes.
    fn hashed(
        &self,
        prefix: Prefix,
        now: Timestamps,
    ) -> impl Future<Output = Result<Arc<Lookup<R>>, StoreError>> + Send {
        self.records(prefix, now)
    }

    /// Whether Keystile's own reads of the store fail. No caller can cause that.
    fn is_lost(&self) -> bool {
        false
    }

    /// Reports that a look-up was not answered before the deadline of its check.
    fn report_late(&self) {}
}

/// Maximum number of rows with one prefix that are read.
pub const MAX_RECORDS: usize = 8;

/// The answer of a store for a prefix.
#[derive(Debug, Clone)]
pub struct Lookup<R = KeyRecord> {
    /// The records, newest first.
    pub records: Arc<[Arc<R>]>,
    /// What has been proven of credentials for them already, elsewhere.
    pub proofs: Arc<[Proof]>,
    /// The tier that answered.
    pub tier: Tier,
    /// Whether they are past their TTL, and are used because no lower tier answers.
    pub stale: bool,
    /// How long ago the records were current on the primary database.
    pub age: Duration,
    /// The changes that the database had seen by then. None where there is no log, or on a standby.
    pub seen: Option<Arc<LogPosition>>,
    /// The rows of the records, for a tier that stores them outside the process.
    pub rows: Arc<[Row]>,
}

/// A value of a row as a database returns it, as text. `None` is NULL.
pub type SqlValue = Option<String>;

/// One row, in the order in which its columns are selected.
pub type Row = Vec<SqlValue>;

impl<R: StoredRecord> Lookup<R> {
    /// Records that were read just now.
    pub fn fresh(records: impl Into<Arc<[Arc<R>]>>, tier: Tier) -> Self {
        Self {
            records: records.into(),
            proofs: Arc::default(),
            tier,
            stale: false,
            age: Duration::ZERO,
            seen: None,
            rows: Arc::default(),
        }
    }

    /// One of the records, proven.
    pub fn proven(&self, record: Arc<R>) -> Proven<R> {
        Proven { record, tier: self.tier, stale: self.stale, limit_status: None }
    }

    /// Whether every record has a hash that a credential can be proven against.
    pub fn is_hashed(&self) -> bool {
        self.records.iter().all(|stored| stored.record().hash.is_whole())
    }
}

/// Why a store has no answer. The text names what an operator can fix, and no secret.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No answer within the deadline.
    #[error("no answer from the database within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// There are too many calls of the database.
    #[error("the database has too many calls at the moment")]
    Busy,
    /// The database cannot be reached, or the connection was lost.
    #[error("the database is unavailable: {0}")]
    Unavailable(ErrorText),
    /// The last calls failed, and the next attempt comes later. The text is that of the last failure.
    #[error("no new attempt yet after: {0}")]
    Paused(ErrorText),
    /// The database answers, but its tables, or what it allows, do not fit.
    #[error("{0}")]
    Unfit(ErrorText),
    /// Another transaction holds a lock for too long.
    #[error("another transaction holds a lock: {0}")]
    Locked(ErrorText),
    /// The work was abandoned before its end.
    #[error(transparent)]
    Abandoned(#[from] crate::resilience::Abandoned),
}

impl StoreError {
    /// The text for an operator. The same for each call that fails for one reason.
    pub fn problem(&self) -> String {
        match self {
            Self::Paused(last) => last.to_string(),
            error => error.to_string(),
        }
    }
}

impl From<Rejected> for StoreError {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Timeout(limit) => Self::Timeout(limit),
            Rejected::QueueFull => Self::Busy,
            Rejected::BreakerOpen(last) => Self::Paused(last),
        }
    }
}

impl CallError for StoreError {
    /// A database that answers, but does not fit, is no outage.
    fn is_outage(&self) -> bool {
        !matches!(self, Self::Unfit(_) | Self::Locked(_))
    }

    fn cause(&self) -> Cause {
        match self {
            Self::Timeout(_) => Cause::NoAnswer,
            Self::Busy => Cause::TooManyCalls,
            Self::Unavailable(text) | Self::Paused(text) => text.cause_or(Cause::Unreachable),
            Self::Unfit(text) => text.cause_or(Cause::Tables),
            Self::Locked(_) => Cause::Locked,
            Self::Abandoned(_) => Cause::Panicked,
        }
    }
}
