//! The tier below memory: Redis before the database, or the database alone.

use std::sync::Arc;

use super::{Database, DatabaseWithProofs, KeyStore, Lookup, RedisTier, StoreError};
use crate::{clock::Timestamps, credential::Prefix};

/// The tier that [`Memory`](super::Memory) reads from.
pub enum LowerTier {
    /// Redis, then the database.
    Redis(RedisTier<Database>),
    /// The database, without Redis.
    Database(Database),
    /// The database, which also stores proofs, without Redis.
    DatabaseWithProofs(Box<DatabaseWithProofs>),
}

impl KeyStore for LowerTier {
    async fn records(&self, prefix: Prefix, now: Timestamps) -> Result<Arc<Lookup>, StoreError> {
        match self {
            Self::Redis(redis) => redis.records(prefix, now).await,
            Self::Database(database) => database.records(prefix, now).await,
            Self::DatabaseWithProofs(database) => database.records(prefix, now).await,
        }
    }

    async fn hashed(&self, prefix: Prefix, now: Timestamps) -> Result<Arc<Lookup>, StoreError> {
        match self {
            Self::Redis(redis) => redis.hashed(prefix, now).await,
            Self::Database(database) => database.hashed(prefix, now).await,
            Self::DatabaseWithProofs(database) => database.hashed(prefix, now).await,
        }
    }

    fn is_lost(&self) -> bool {
        match self {
            Self::Redis(redis) => redis.is_lost(),
            Self::Database(database) => database.is_lost(),
            Self::DatabaseWithProofs(database) => database.is_lost(),
        }
    }
}
