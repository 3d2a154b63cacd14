//! Proves credentials against bcrypt hashes, once each.
//!
//! A proof is remembered by three things together: the digest of the whole credential, the record,
//! and the hash stored in it. So nothing short of the whole credential reaches a proof, and a key
//! whose hash changed must be proven again.
//!
//! What is not known to be right or wrong waits in one queue (`verifier/queue.rs`), whether its prefix exists or not. A
//! made-up key is refused at the time and with the answer of a wrong secret, is remembered alike, and costs no bcrypt.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use metrics::Gauge;
use time::OffsetDateTime;

use crate::{
    cache::{Cache, cache},
    clock::Timestamps,
    config::{BcryptCost, DEFAULT_COST, FailedAttempts},
    credential::{CacheSecrets, Credential, Digest},
    decision::Tier,
    metrics::{CacheLookups, Metrics},
    proof::{Proof, ProofKey},
    record::{HashTag, KeyHash, KeyId, KeyRecord, StoredRecord},
    resilience::Singleflight,
    store::{Lookup, MAX_RECORDS},
};

mod caller;
mod lookup_time;
mod marks;
mod networks;
mod order;
mod pace;
mod pool;
mod proofs;
mod queue;
mod recent;
mod watch;

pub use caller::Caller;
use pool::{Job, Pool};
use proofs::{Proofs, Recall};
use queue::Outcome;

/// Proves credentials. Cheap to clone.
#[derive(Clone)]
pub struct Verifier(Arc<Inner>);

/// How much a [`Verifier`] may do and remember.
#[derive(Debug, Clone, Copy)]
pub struct VerifierConfig {
    /// Threads that run bcrypt.
    pub threads: usize,
    /// bcrypt cost that refusals imitate.
    pub cost: BcryptCost,
    /// When a network's unproven credentials are served last.
    pub failed_attempts: Option<FailedAttempts>,
    /// Most proofs remembered. Refusals have a cache of the same size.
    pub capacity: usize,
    /// How long a proof is believed if it is not used.
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
    /// Too many first proofs wait already, or its turn did not come in time.
    #[error("too many proofs are waiting")]
    Overloaded,
    /// The same, for a network that failed too often. It may be throttled no longer after this time.
    #[error("too many credentials of this network were wrong")]
    TooManyAttempts(Duration),
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
    /// The cost that refusals imitate.
    cost: AtomicU32,
    proofs: Proofs,
    refusals: Cache<ProofKey, Instant>,
    /// Stands for the hash of a prefix that does not exist.
    no_hash: HashTag,
    /// Each credential is proven once at a time. The value is the place of its record.
    singleflight: Singleflight<Attempt, Result<usize, ProofError>>,
    lookups: CacheLookups,
    refused: Gauge,
}

/// Told of each proof key that was proven here, of its credential, and for how long a use may extend the proof; again
/// whenever the proof was extended.
type Share = dyn Fn(&Credential, ProofKey, Shared) + Send + Sync;

/// Why a proof is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// bcrypt has confirmed it just now.
    Proven,
    /// It is in use, and counts for so long at most.
    Extended(Duration),
}

/// One credential against these hashes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Attempt {
    digest: Digest,
    records: [Option<(KeyId, HashTag)>; MAX_RECORDS],
}

impl Verifier {
    /// Starts the bcrypt threads, with nothing proven yet. What is proven is told to `share` as well.
    pub fn new(
        secrets: CacheSecrets,
        config: VerifierConfig,
        share: impl Fn(&Credential, ProofKey, Shared) + Send + Sync + 'static,
        metrics: &Metrics,
    ) -> Self {
        let cost = config.cost.of_new_hashes();
        Self(Arc::new(Inner {
            secrets,
            share: Box::new(share),
            config,
            pool: Pool::start(config.threads, cost, config.failed_attempts, metrics),
            cost: AtomicU32::new(cost),
            proofs: Proofs::new(config.capacity, config.proof_ttl, metrics.cache_entries("proofs")),
            refusals: cache(config.capacity),
            no_hash: HashTag::none(),
            singleflight: Singleflight::default(),
            lookups: metrics.cache_lookups("memory", "proofs"),
            refused: metrics.cache_entries("refusals"),
        }))
    }

    /// Finds the record that the whole credential belongs to.
    ///
    /// # Errors
    /// [`ProofError::Mismatch`] when it belongs to none of them, also when there are none.
    pub async fn prove<R: StoredRecord>(
        &self,
        credential: &Credential,
        found: &Lookup<R>,
        caller: &Caller,
    ) -> Result<Arc<R>, ProofError> {
        let digest = credential.digest(self.0.secrets.newest());
        // Before any bcrypt: with several records, the proof may be that of the last.
        for stored in found.records.iter() {
            let proof_key = ProofKey::of(digest, stored.record());
            if self.0.is_proven(&proof_key, credential, caller.now.monotonic) {
                return Ok(Arc::clone(stored));
            }
        }
        if let Some((stored, proof)) = self.0.proven_elsewhere(credential, found, caller.now) {
            let proof_key = ProofKey::of(digest, stored.record());
            let left = |end: OffsetDateTime| Duration::try_from(end - caller.now.wall).unwrap_or_default();
            self.0.proofs.insert_for(proof_key, left(proof.until), left(proof.ends), caller.now.monotonic);
            return Ok(Arc::clone(stored));
        }
        // Apart, so that a check of a proven key is not the size of one that waits for bcrypt.
        Box::pin(self.compute(credential, digest, found, caller)).await
    }

    /// Learns the highest cost among the active hashes, which refusals imitate from now on; `None` when there is no
    /// hash. Does nothing where the setting names a cost.
    pub fn learn_cost(&self, highest: Option<u32>) {
        if self.0.config.cost == BcryptCost::Auto {
            let cost = highest.unwrap_or(DEFAULT_COST);
            if self.0.cost.swap(cost, Ordering::Relaxed) != cost {
                self.0.pool.imitate(cost);
            }
        }
    }

    /// Proofs and refusals that are remembered.
    pub fn len(&self) -> (usize, usize) {
        (self.0.proofs.len(), self.0.refusals.len())
    }

    async fn compute<R: StoredRecord>(
        &self,
        credential: &Credential,
        digest: Digest,
        found: &Lookup<R>,
        caller: &Caller,
    ) -> Result<Arc<R>, ProofError> {
        let inner = &self.0;
        let now = caller.now.monotonic;
        let open = |stored: &&Arc<R>| {
            let proof_key = ProofKey::of(digest, stored.record());
            !inner.is_refused(&proof_key, now)
        };
        let records: Vec<_> = found.records.iter().filter(open).take(MAX_RECORDS).cloned().collect();
        let of_no_key = ProofKey { digest, key: None, hash: inner.no_hash };
        let known_wrong = match found.records.is_empty() {
            true => inner.is_refused(&of_no_key, now),
            false => records.is_empty(),
        };
        if known_wrong {
            inner.lookups.negative.increment(1);
            return Err(ProofError::Mismatch);
        }
        if records.iter().any(|stored| stored.record().hash.expose().is_none()) {
            return Err(ProofError::Unhashed);
        }
        inner.lookups.miss.increment(1);
        let mut attempt = Attempt { digest, records: [None; MAX_RECORDS] };
        for (place, stored) in attempt.records.iter_mut().zip(&records) {
            let record = stored.record();
            *place = Some((record.id, record.hash.tag()));
        }
        let work = || {
            let hashes = records.iter().map(|stored| stored.record().hash.clone()).collect();
            let from_memory = found.tier == Tier::Memory;
            Arc::clone(inner).first_proof(attempt, credential.clone(), hashes, from_memory, *caller)
        };
        let proven = inner.singleflight.join(attempt, work).await.unwrap_or(Err(ProofError::Abandoned))?;
        records.into_iter().nth(proven).ok_or(ProofError::Abandoned)
    }
}

impl Inner {
    fn is_proven(&self, proof_key: &ProofKey, credential: &Credential, now: Instant) -> bool {
        match self.proofs.recall(proof_key, now) {
            Recall::Miss => return false,
            Recall::Proven => {}
            Recall::Extended(left) => (self.share)(credential, *proof_key, Shared::Extended(left)),
        }
        self.lookups.hit.increment(1);
        true
    }

    /// What the found proofs say, made under any secret that is still understood.
    fn proven_elsewhere<'a, R: StoredRecord>(
        &self,
        credential: &Credential,
        found: &'a Lookup<R>,
        now: Timestamps,
    ) -> Option<(&'a Arc<R>, &'a Proof)> {
        if found.proofs.is_empty() {
            return None;
        }
        let digests: Vec<_> = self.secrets.iter().map(|secret| credential.digest(secret)).collect();
        let proof = |record: &KeyRecord| {
            let held = |proof: &&Proof| {
                let ProofKey { digest, key, hash } = proof.proof_key;
                now.wall < proof.until
                    && digests.contains(&digest)
                    && key == Some(record.id)
                    && hash == record.hash.tag()
            };
            found.proofs.iter().find(held)
        };
        found.records.iter().find_map(|stored| Some((stored, proof(stored.record())?)))
    }

    fn is_refused(&self, proof_key: &ProofKey, now: Instant) -> bool {
        self.refusals.get(proof_key).is_some_and(|until| now < until)
    }

    /// Waits for the credential's turn. `hashes` are those of the attempt's records; none, where the prefix does not
    /// exist.
    async fn first_proof(
        self: Arc<Self>,
        attempt: Attempt,
        credential: Credential,
        hashes: Vec<KeyHash>,
        from_memory: bool,
        caller: Caller,
    ) -> Result<usize, ProofError> {
        let now = caller.now.monotonic;
        // Between a caller's look and its turn here, another's computation may have ended.
        if let Some(known) = self.remembered(&attempt, now) {
            return known;
        }
        let (prefix, proven) = (credential.prefix(), credential.clone());
        let job = hashes.iter().map(KeyHash::cost).max().map(|highest| {
            // Until the database is asked again.
            if self.cost.fetch_max(highest, Ordering::Relaxed) < highest {
                self.pool.imitate(highest);
            }
            let inner = Arc::clone(&self);
            let compute = Box::new(move || {
                let place = hashes.iter().position(|hash| matches(&credential, hash))?;
                // At once, and here: its caller may have been turned away by then.
                let proof_key = attempt.proof_key(place)?;
                inner.proofs.insert(proof_key, now);
                Some(place)
            });
            Job { cost: highest, compute }
        });
        let outcome = self.pool.submit(prefix, &caller, from_memory, job).await;
        match outcome.map_err(|_| ProofError::Abandoned)? {
            Outcome::Match(place) => {
                if let Some(proof_key) = attempt.proof_key(place) {
                    (self.share)(&proven, proof_key, Shared::Proven);
                }
                Ok(place)
            }
            Outcome::Mismatch => {
                self.remember_refusal(&attempt, now);
                Err(ProofError::Mismatch)
            }
            Outcome::Overloaded => Err(ProofError::Overloaded),
            Outcome::TooManyAttempts(retry_after) => Err(ProofError::TooManyAttempts(retry_after)),
            Outcome::Abandoned => Err(ProofError::Abandoned),
        }
    }

    /// How the attempt has ended, if it has before.
    fn remembered(&self, attempt: &Attempt, now: Instant) -> Option<Result<usize, ProofError>> {
        let proven = |place: &usize| {
            let proof_key = attempt.proof_key(*place);
            proof_key.is_some_and(|proof_key| self.proofs.recall(&proof_key, now) != Recall::Miss)
        };
        if let Some(place) = (0..MAX_RECORDS).find(proven) {
            return Some(Ok(place));
        }
        let refused = self.proof_keys(attempt).iter().all(|proof_key| self.is_refused(proof_key, now));
        refused.then_some(Err(ProofError::Mismatch))
    }

    /// In a place of its own: a flood of wrong secrets evicts no proof.
    fn remember_refusal(&self, attempt: &Attempt, now: Instant) {
        for proof_key in self.proof_keys(attempt) {
            self.refusals.insert(proof_key, now + self.config.negative_ttl);
        }
        self.refused.set(self.refusals.len() as f64);
    }

    /// What an attempt may prove: to be the key of each of its records, or of a prefix that does not exist.
    fn proof_keys(&self, attempt: &Attempt) -> Vec<ProofKey> {
        let proof_keys: Vec<_> = (0..MAX_RECORDS).filter_map(|place| attempt.proof_key(place)).collect();
        match proof_keys.is_empty() {
            true => vec![ProofKey { digest: attempt.digest, key: None, hash: self.no_hash }],
            false => proof_keys,
        }
    }
}

impl Attempt {
    fn proof_key(&self, place: usize) -> Option<ProofKey> {
        let (id, hash) = self.records.get(place).copied().flatten()?;
        Some(ProofKey { digest: self.digest, key: Some(id), hash })
    }
}

/// The one place where credentials are compared. It reads every [`KeyHash`]; what it could not read would match nothing.
fn matches(credential: &Credential, hash: &KeyHash) -> bool {
    bcrypt::verify(credential.expose(), hash.expose().unwrap_or_default()).unwrap_or(false)
}

#[cfg(test)]
mod tests;
