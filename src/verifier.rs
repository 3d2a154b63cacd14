//! Proves credentials against bcrypt hashes, once each.
//!
//! A proof is remembered by three things together: the digest of the whole credential, the record,
//! and the hash stored in it. So nothing short of the whole credential reaches a proof, and a key
//! whose hash changed must be proven again.
//!
//! An unknown prefix is proven against a decoy, by this very path: it costs what a wrong secret
//! costs, waits in the same queue and is remembered alike.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::Gauge;

use crate::{
    cache::{Cache, cache},
    credential::{CacheSecrets, Credential, Digest},
    flight::Flights,
    metrics::{CacheLookups, Metrics},
    moment::Moment,
    proof::{Claim, Proof},
    record::{KeyHash, KeyRecord},
    store::Found,
};

mod decoy;
mod pool;

use decoy::Decoy;
use pool::{Full, Pool};

/// Proves credentials. Cheap to clone.
#[derive(Clone)]
pub struct Verifier(Arc<Inner>);

/// How much a [`Verifier`] may do and remember.
#[derive(Debug, Clone, Copy)]
pub struct VerifierConfig {
    /// Threads that run bcrypt.
    pub threads: usize,
    /// bcrypt cost of the decoy, until a costlier key is seen.
    pub cost: u32,
    /// Proofs remembered at the most, and as many refusals, apart.
    pub capacity: usize,
    /// How long a proof is believed.
    pub proof_ttl: Duration,
    /// How long a wrong secret is known to be wrong.
    pub negative_ttl: Duration,
}

/// Why a credential was not proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// It belongs to none of the records.
    #[error("the credential matches no record")]
    Mismatch,
    /// Too many proofs wait already.
    #[error("too many proofs are waiting")]
    Overloaded,
    /// The computation ended without an answer.
    #[error("the proof was abandoned")]
    Abandoned,
    /// Only bcrypt can tell, and the hash it needs is not in the record: it must be read from the database.
    #[error("the record has no hash")]
    Unhashed,
}

struct Inner {
    secrets: CacheSecrets,
    share: Box<Share>,
    config: VerifierConfig,
    pool: Pool,
    decoy: Decoy,
    proofs: Cache<Claim, Instant>,
    refusals: Cache<Claim, Instant>,
    flights: Flights<Claim, Result<bool, ProofError>>,
    lookups: CacheLookups,
    entries: Entries,
}

/// Told of each claim that was proven here, and of its credential.
type Share = dyn Fn(&Credential, Claim) + Send + Sync;

struct Entries {
    proofs: Gauge,
    refusals: Gauge,
}

impl Verifier {
    /// Starts the bcrypt threads, with nothing proven yet. What is proven is told to `share` as well.
    pub fn new(
        secrets: CacheSecrets,
        config: VerifierConfig,
        share: impl Fn(&Credential, Claim) + Send + Sync + 'static,
        metrics: &Metrics,
    ) -> Self {
        Self(Arc::new(Inner {
            secrets,
            share: Box::new(share),
            config,
            pool: Pool::start(config.threads, metrics),
            decoy: Decoy::new(config.cost),
            proofs: cache(config.capacity),
            refusals: cache(config.capacity),
            flights: Flights::default(),
            lookups: metrics.cache_lookups("memory", "proofs"),
            entries: Entries {
                proofs: metrics.cache_entries("proofs"),
                refusals: metrics.cache_entries("refusals"),
            },
        }))
    }

    /// Finds the record that the whole credential belongs to.
    ///
    /// # Errors
    /// [`ProofError::Mismatch`] when it belongs to none of them, also when there are none.
    pub async fn prove(
        &self,
        credential: &Credential,
        found: &Found,
        now: Moment,
    ) -> Result<Arc<KeyRecord>, ProofError> {
        let digest = credential.digest(self.0.secrets.newest());
        let claim = |record: &KeyRecord| Claim { digest, key: Some(record.id), hash: record.hash.tag() };
        // Before any bcrypt: with several records, the proof may be that of the last.
        let mut records = found.records.iter();
        if let Some(record) = records.find(|record| self.0.is_proven(&claim(record), now.monotonic)) {
            return Ok(Arc::clone(record));
        }
        if let Some((record, until)) = self.0.proven_elsewhere(credential, found, now) {
            self.0.remember_proof(claim(record), until);
            return Ok(Arc::clone(record));
        }
        // Apart, so that a check of a proven key is not the size of one that waits for bcrypt.
        Box::pin(self.compute(credential, digest, found, now.monotonic)).await
    }

    async fn compute(
        &self,
        credential: &Credential,
        digest: Digest,
        found: &Found,
        now: Instant,
    ) -> Result<Arc<KeyRecord>, ProofError> {
        for record in found.records.iter() {
            let claim = Claim { digest, key: Some(record.id), hash: record.hash.tag() };
            if self.verify(claim, credential, &record.hash, now).await? {
                return Ok(Arc::clone(record));
            }
        }
        if found.records.is_empty() {
            let hash = self.0.decoy.hash();
            let claim = Claim { digest, key: None, hash: hash.tag() };
            self.verify(claim, credential, &hash, now).await?;
        }
        Err(ProofError::Mismatch)
    }

    /// Proofs and refusals that are remembered.
    pub fn len(&self) -> (usize, usize) {
        (self.0.proofs.len(), self.0.refusals.len())
    }

    async fn verify(
        &self,
        claim: Claim,
        credential: &Credential,
        hash: &KeyHash,
        now: Instant,
    ) -> Result<bool, ProofError> {
        if self.0.is_refused(&claim, now) {
            return Ok(false);
        }
        if hash.expose().is_none() {
            return Err(ProofError::Unhashed);
        }
        self.0.lookups.miss.increment(1);
        let work = || {
            let (inner, credential, hash) = (Arc::clone(&self.0), credential.clone(), hash.clone());
            async move { inner.compute(claim, credential, hash, now).await }
        };
        self.0.flights.join(claim, work).await.unwrap_or(Err(ProofError::Abandoned))
    }
}

impl Inner {
    fn is_proven(&self, claim: &Claim, now: Instant) -> bool {
        let proven = is_held(&self.proofs, claim, now);
        if proven {
            self.lookups.hit.increment(1);
        }
        proven
    }

    /// What the found proofs say, made under any secret that is still understood, and until when.
    fn proven_elsewhere<'a>(
        &self,
        credential: &Credential,
        found: &'a Found,
        now: Moment,
    ) -> Option<(&'a Arc<KeyRecord>, Instant)> {
        if found.proofs.is_empty() {
            return None;
        }
        let digests: Vec<_> = self.secrets.iter().map(|secret| credential.digest(secret)).collect();
        let proof = |record: &KeyRecord| {
            let held = |proof: &&Proof| {
                let Claim { digest, key, hash } = proof.claim;
                now.wall < proof.until
                    && digests.contains(&digest)
                    && key == Some(record.id)
                    && hash == record.hash.tag()
            };
            found.proofs.iter().find(held)
        };
        let (record, proof) = found.records.iter().find_map(|record| Some((record, proof(record)?)))?;
        let left = Duration::try_from(proof.until - now.wall).ok()?;
        Some((record, now.monotonic + left.min(self.config.proof_ttl)))
    }

    fn is_refused(&self, claim: &Claim, now: Instant) -> bool {
        let refused = is_held(&self.refusals, claim, now);
        if refused {
            self.lookups.negative.increment(1);
        }
        refused
    }

    /// How the computation has ended, if it has before.
    fn remembered(&self, claim: &Claim, now: Instant) -> Option<bool> {
        match is_held(&self.proofs, claim, now) {
            true => Some(true),
            false => is_held(&self.refusals, claim, now).then_some(false),
        }
    }

    async fn compute(
        self: Arc<Self>,
        claim: Claim,
        credential: Credential,
        hash: KeyHash,
        now: Instant,
    ) -> Result<bool, ProofError> {
        // Between a caller's look and its turn here, another's computation may have ended.
        if let Some(matches) = self.remembered(&claim, now) {
            return Ok(matches);
        }
        let (inner, proven) = (Arc::clone(&self), credential.clone());
        let answer = self.pool.run(move || {
            let matches = matches(&credential, &hash);
            if !matches {
                inner.decoy.make_up(&credential, hash.cost());
            }
            // Either way the costliest hash seen sets the cost of the next decoy.
            inner.decoy.raise(hash.cost());
            matches
        });
        let answer = answer.map_err(|Full| ProofError::Overloaded)?;
        let matches = answer.await.map_err(|_| ProofError::Abandoned)?;
        if matches {
            self.remember_proof(claim, now + self.config.proof_ttl);
            (self.share)(&proven, claim);
        } else {
            // In a place of its own: a flood of wrong secrets evicts no proof.
            self.refusals.insert(claim, now + self.config.negative_ttl);
            self.entries.refusals.set(self.refusals.len() as f64);
        }
        Ok(matches)
    }

    fn remember_proof(&self, claim: Claim, until: Instant) {
        self.proofs.insert(claim, until);
        self.entries.proofs.set(self.proofs.len() as f64);
    }
}

fn is_held(claims: &Cache<Claim, Instant>, claim: &Claim, now: Instant) -> bool {
    claims.get(claim).is_some_and(|until| now < until)
}

/// The one place where bcrypt runs. It reads every [`KeyHash`]; what it could not read would match nothing.
fn matches(credential: &Credential, hash: &KeyHash) -> bool {
    bcrypt::verify(credential.expose(), hash.expose().unwrap_or_default()).unwrap_or(false)
}

#[cfg(test)]
mod tests;
