//! What stands below memory: Redis before the database, or the database alone.

use std::sync::Arc;

use super::{Database, Found, KeyStore, ProvenDatabase, Shared, StoreError};
use crate::{clock::Timestamps, credential::Prefix};

/// The tiers that [`Memory`](super::Memory) asks.
pub enum Below {
    /// Redis, and the database behind it.
    Shared(Shared<Database>),
    /// There is no Redis.
    Alone(Database),
    /// There is no Redis, and the database keeps proofs.
    Proven(Box<ProvenDatabase>),
}

impl KeyStore for Below {
    async fn records(&self, prefix: Prefix, now: Timestamps) -> Result<Arc<Found>, StoreError> {
        match self {
            Self::Shared(shared) => shared.records(prefix, now).await,
            Self::Alone(database) => database.records(prefix, now).await,
            Self::Proven(database) => database.records(prefix, now).await,
        }
    }

    async fn hashed(&self, prefix: Prefix, now: Timestamps) -> Result<Arc<Found>, StoreError> {
        match self {
            Self::Shared(shared) => shared.hashed(prefix, now).await,
            Self::Alone(database) => database.hashed(prefix, now).await,
            Self::Proven(database) => database.hashed(prefix, now).await,
        }
    }

    fn is_lost(&self) -> bool {
        match self {
            Self::Shared(shared) => shared.is_lost(),
            Self::Alone(database) => database.is_lost(),
            Self::Proven(database) => database.is_lost(),
        }
    }
}
