//! Where key records come from: one trait, and the tiers that implement it.
//!
//! Tiers decorate one another: [`Memory`] asks the next one for what it does not hold; at the
//! bottom stands a [`Database`], which operators also manage users and keys through.

use std::{future::Future, sync::Arc, time::Duration};

use crate::{credential::Prefix, decision::Tier, moment::Moment, record::KeyRecord};

mod catalog;
mod cell;
mod columns;
mod database;
mod manage;
mod memory;
mod migrate;
mod postgres;
mod row;
mod sql;
mod sqlite;

pub use cell::allow_list;
pub use columns::Listed;
pub use database::Database;
pub use manage::{ImportError, ImportRow, ManageError, NewKey, NewUser};
pub use memory::{Memory, MemoryConfig};
pub use migrate::Migration;

/// Finds the records that a credential might belong to.
pub trait KeyStore: Send + Sync + 'static {
    /// All records whose prefix is `prefix`, newest first, at most [`MAX_RECORDS`].
    ///
    /// None is an answer, not an error: the prefix is unknown.
    fn records(&self, prefix: Prefix, now: Moment) -> impl Future<Output = Result<Found, StoreError>> + Send;
}

/// How many rows with one prefix are tried.
pub const MAX_RECORDS: usize = 8;

/// What a store found for a prefix.
#[derive(Debug, Clone)]
pub struct Found {
    /// The records, newest first.
    pub records: Arc<[Arc<KeyRecord>]>,
    /// Which tier had them.
    pub tier: Tier,
    /// Whether they are past their time, and serve because no tier below answers.
    pub stale: bool,
}

/// Why a store has no answer. Its text names what an operator can mend, and no secret.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No answer within the deadline.
    #[error("no answer from the database within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// The database cannot be reached or broke off.
    #[error("the database is unavailable: {0}")]
    Unavailable(Arc<str>),
    /// The database answers, but it does not hold what is needed.
    #[error("{0}")]
    Unfit(Arc<str>),
    /// The work was abandoned half-way.
    #[error(transparent)]
    Abandoned(#[from] crate::flight::Abandoned),
}

impl StoreError {
    /// Whether nobody answered. A database that answers, but is not fit, is no outage.
    pub fn is_outage(&self) -> bool {
        !matches!(self, Self::Unfit(_))
    }
}
