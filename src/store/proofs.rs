//! Proofs that survive a restart: the table `keystile_proofs`, used where there is no Redis.
//!
//! A look-up reads the proofs of its keys in the same statement. Each proof is sealed under the cache secret, together
//! with the key's id and the tag of its hash. A row that was changed, moved to another key or written under another
//! secret is rejected, and so is one whose key has another hash now.

use std::sync::Arc;

use serde_json::json;
use time::OffsetDateTime;
use tracing::debug;

use super::{
    Database, KeyStore, Lookup, Row, StoreError, look_up,
    schema::PROOFS,
    statement::{Deadline, Statement},
};
use crate::{
    clock::Timestamps,
    credential::{CacheSecrets, Prefix},
    metrics::{CacheLookups, Metrics},
    proof::Proof,
    record::KeyRecord,
};

mod seal;

pub use seal::{InvalidProof, ProofSeals, StoredProof};

/// A database, and the proofs that it stores.
pub struct DatabaseWithProofs {
    database: Database,
    seals: ProofSeals,
    lookups: CacheLookups,
}

impl DatabaseWithProofs {
    /// Accepts proofs that were sealed under one of `secrets`.
    pub fn new(database: Database, secrets: CacheSecrets, metrics: &Metrics) -> Self {
        let lookups = metrics.cache_lookups("database", "proofs");
        Self { database, seals: ProofSeals::new(secrets), lookups }
    }

    fn read(&self, lookup: &Lookup, now: OffsetDateTime) -> Arc<[Proof]> {
        let mut proofs = Vec::new();
        for (record, row) in lookup.records.iter().zip(lookup.rows.iter()) {
            for proof in self.read_row(record, row, now) {
                match proof {
                    Ok(proof) => proofs.push(proof),
                    Err(invalid) => {
                        debug!(key_id = record.id.0, %invalid, "a stored proof is rejected");
                        self.lookups.invalid.increment(1);
                    }
                }
            }
        }
        if !lookup.records.is_empty() {
            let count = if proofs.is_empty() { &self.lookups.miss } else { &self.lookups.hit };
            count.increment(1);
        }
        proofs.into()
    }

    fn read_row(
        &self,
        record: &KeyRecord,
        row: &Row,
        now: OffsetDateTime,
    ) -> Vec<Result<Proof, InvalidProof>> {
        let Some(proofs) = look_up::stored_proofs(row) else { return Vec::new() };
        match serde_json::from_str::<Vec<[String; 3]>>(proofs) {
            Ok(proofs) => proofs.iter().map(|values| self.seals.open(record, values, now)).collect(),
            Err(_) => vec![Err(InvalidProof::Content)],
        }
    }
}

impl KeyStore for DatabaseWithProofs {
    async fn records(&self, prefix: Prefix, now: Timestamps) -> Result<Arc<Lookup>, StoreError> {
        let lookup = self.database.records(prefix, now).await?;
        let proofs = self.read(&lookup, now.wall);
        if proofs.is_empty() {
            return Ok(lookup);
        }
        Ok(Arc::new(Lookup { proofs, ..Arc::unwrap_or_clone(lookup) }))
    }

    fn is_lost(&self) -> bool {
        self.database.is_lost()
    }
}

impl Database {
    /// Stores proofs. Those of the same key and credential are replaced.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer, has no such table, or does not allow it.
    pub async fn write_proofs(&self, proofs: &[StoredProof]) -> Result<(), StoreError> {
        if !self.schema(Deadline::Check).await?.has_proofs() {
            return Err(StoreError::Unfit(
                format!("there is no table {PROOFS}, or it may not be read; run `keystile migrate`").into(),
            ));
        }
        let rows = proofs.iter().map(|proof| {
            let [tag, proven_at, seal] = proof.values();
            json!({ "key_id": proof.key().0, "tag": tag, "proven_at": proven_at, "seal": seal })
        });
        let rows = serde_json::Value::from_iter(rows).to_string();
        self.change_proofs(self.statements().store_proofs(&rows).to_vec()).await
    }

    /// Deletes the proofs that have expired at `now`.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer, or does not allow it.
    pub async fn prune_proofs(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        if !self.schema(Deadline::Check).await?.has_proofs() {
            return Ok(());
        }
        self.change_proofs(vec![self.statements().prune_proofs(seal::oldest(now))]).await
    }

    /// Without the guard: a failure of the table of proofs does not concern look-ups.
    async fn change_proofs(&self, statements: Vec<Statement>) -> Result<(), StoreError> {
        let _permit = self.permit().await;
        self.backend().execute_all(statements).await
    }
}
