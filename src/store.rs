//! Where key records come from: one trait, and the tiers that implement it.
//!
//! Tiers decorate one another: [`Memory`] asks the next one for what it does not hold, which is [`Shared`]
//! where there is Redis; at the bottom stands a [`Database`], which operators also manage users and keys
//! through.

use std::{future::Future, sync::Arc, time::Duration};

use crate::{
    clock::Timestamps,
    credential::Prefix,
    decision::{Proven, Tier},
    proof::Proof,
    record::{KeyRecord, StoredRecord},
    resilience::{CallError, Rejected},
    revocation::LogPosition,
};

mod below;
mod budgets;
mod catalog;
mod cell;
mod change_log;
mod columns;
mod database;
mod manage;
mod memory;
mod migrate;
mod postgres;
mod proofs;
mod row;
mod shared;
mod sql;
mod sqlite;
mod used;
mod watched;

pub use below::Below;
pub use cell::{Cell, allow_list};
pub use change_log::{Confirmed, MAX_ENTRIES, SQLITE_POLL};
pub use columns::Listed;
pub use database::Database;
pub use manage::{ImportError, ImportRow, ManageError, NewKey, NewUser};
pub use memory::{Memory, MemoryConfig};
pub use migrate::{Log, Migration};
pub use proofs::{InvalidProof, ProofSeals, ProvenDatabase, StoredProof};
pub use shared::{Shared, SharedConfig, entry};
pub use used::{UsageStore, UsageTable, Written};

/// Finds the records that a credential might belong to. `R` is how it hands them out.
pub trait KeyStore<R: StoredRecord = KeyRecord>: Send + Sync + 'static {
    /// All records whose prefix is `prefix`, newest first, at most [`MAX_RECORDS`].
    ///
    /// None is an answer, not an error: the prefix is unknown.
    fn records(
        &self,
        prefix: Prefix,
        now: Timestamps,
    ) -> impl Future<Output = Result<Arc<Found<R>>, StoreError>> + Send;

    /// The same, with the hash in every record, which bcrypt needs: no tier outside the process has them.
    fn hashed(
        &self,
        prefix: Prefix,
        now: Timestamps,
    ) -> impl Future<Output = Result<Arc<Found<R>>, StoreError>> + Send {
        self.records(prefix, now)
    }

    /// Whether the store answers Keystile's own reads no more, which no caller can bring about.
    fn is_lost(&self) -> bool {
        false
    }
}

/// How many rows with one prefix are tried.
pub const MAX_RECORDS: usize = 8;

/// What a store found for a prefix.
#[derive(Debug, Clone)]
pub struct Found<R = KeyRecord> {
    /// The records, newest first.
    pub records: Arc<[Arc<R>]>,
    /// What has been proven of credentials for them already, elsewhere.
    pub proofs: Arc<[Proof]>,
    /// Which tier had them.
    pub tier: Tier,
    /// Whether they are past their time, and serve because no tier below answers.
    pub stale: bool,
    /// How long ago the records were current on the primary database.
    pub age: Duration,
    /// Which changes the database had seen by then. None where there is no log, or on a standby.
    pub seen: Option<Arc<LogPosition>>,
    /// The rows that the records were read from, for a tier that keeps them outside the process.
    pub rows: Arc<[Row]>,
}

/// One row, in the order in which its columns are selected.
pub type Row = Vec<Cell>;

impl<R: StoredRecord> Found<R> {
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
        Proven { record, tier: self.tier, stale: self.stale, standing: None }
    }

    /// Whether every record has its hash.
    pub fn is_hashed(&self) -> bool {
        self.records.iter().all(|stored| stored.record().hash.expose().is_some())
    }
}

/// Why a store has no answer. Its text names what an operator can mend, and no secret.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No answer within the deadline.
    #[error("no answer from the database within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// More is asked of the database than it can be.
    #[error("too much is asked of the database at the moment")]
    Busy,
    /// The database cannot be reached or broke off.
    #[error("the database is unavailable: {0}")]
    Unavailable(Arc<str>),
    /// The database answers, but it does not hold what is needed.
    #[error("{0}")]
    Unfit(Arc<str>),
    /// Another transaction holds a lock that was waited for long enough.
    #[error("another transaction holds a lock: {0}")]
    Locked(Arc<str>),
    /// The work was abandoned half-way.
    #[error(transparent)]
    Abandoned(#[from] crate::resilience::Abandoned),
}

impl From<Rejected> for StoreError {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Timeout(limit) => Self::Timeout(limit),
            Rejected::QueueFull => Self::Busy,
            Rejected::BreakerOpen(_) => Self::Unavailable(rejected.to_string().into()),
        }
    }
}

impl CallError for StoreError {
    /// A database that answers, but is not fit, is no outage.
    fn is_outage(&self) -> bool {
        !matches!(self, Self::Unfit(_) | Self::Locked(_))
    }
}
