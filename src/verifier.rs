//! Proves credentials against stored hashes, once each.
//!
//! A proof is cached under three values together: the digest of the whole credential, the record, and the hash stored
//! in the record. So only the whole credential finds its proof, and a key whose hash changed must be proven again.
//!
//! A credential that is neither proven nor refused yet waits in one queue (`verifier/queue.rs`), whether its prefix
//! exists or not. A made-up key is refused at the same time and with the same answer as a wrong secret. Its refusal is
//! cached in the same way. It costs no bcrypt.
//!
//! SHA-256 hashes are compared before that, at once: a right secret never waits. A wrong one waits in the queue like a
//! made-up key, so it tells nothing about the prefix or the kind of its hash.

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
    record::{BcryptHash, HashKind, HashTag, KeyHash, KeyId, KeyRecord, Sha256Hash, StoredRecord},
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

pub use caller::Caller;
use pool::{Job, Pool};
use proofs::{Proofs, Recall};
use queue::Outcome;

/// Proves credentials. Cheap to clone.
#[derive(Clone)]
pub struct Verifier(Arc<Inner>);

/// Limits of a [`Verifier`].
#[derive(Debug, Clone, Copy)]
pub struct VerifierConfig {
    /// Threads that run bcrypt.
    pub threads: usize,
    /// bcrypt cost that refusals imitate.
    pub cost: BcryptCost,
    /// Failed attempts after which a network's unproven credentials are served last. `None`: no limit.
    pub failed_attempts: Option<FailedAttempts>,
    /// Maximum number of cached proofs. Refusals have a separate cache of the same size.
    pub capacity: usize,
    /// Lifetime of a proof that is not used.
    pub proof_ttl: Duration,
    /// Lifetime of a cached refusal.
    pub negative_ttl: Duration,
}

/// Why a credential was not proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The credential belongs to none of the records.
    #[error("the credential matches no record")]
    Mismatch,
    /// The queue of first proofs is full, or the attempt reached its deadline in the queue.
    #[error("too many proofs are waiting")]
    Overloaded,
    /// Same as [`ProofError::Overloaded`], for a throttled network: it failed too often. The throttling may end after
    /// this time.
    #[error("too many credentials of this network were wrong")]
    TooManyAttempts(Duration),
    /// The computation ended without a result.
    #[error("the proof was abandoned")]
    Abandoned,
    /// The proof needs bcrypt, and the record does not contain the hash. The caller must read it from the database.
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
    /// Placeholder for the hash of a prefix that does not exist.
    no_hash: HashTag,
    /// Concurrent attempts with the same credential share one proof. The value is the index of the matching record.
    singleflight: Singleflight<Attempt, Result<usize, ProofError>>,
    lookups: CacheLookups,
    refused: Gauge,
}

/// Called with the credential and the proof key after each proof made here, and each time a proof is extended. The
/// reason states which, and how long a use may extend the proof.
type Share = dyn Fn(&Credential, ProofKey, ShareReason) + Send + Sync;

/// Why a proof is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShareReason {
    /// bcrypt has just confirmed it.
    Proven,
    /// A use has extended it. The value is the maximum remaining lifetime of the proof.
    Extended(Duration),
}

/// One credential and the hashes it is compared with.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Attempt {
    digest: Digest,
    records: [Option<(KeyId, HashTag)>; MAX_RECORDS],
}

impl Verifier {
    /// Starts the bcrypt threads, with empty caches. Calls `share` for each proof that is made or extended here.
    pub fn new(
        secrets: CacheSecrets,
        config: VerifierConfig,
        share: impl Fn(&Credential, ProofKey, ShareReason) + Send + Sync + 'static,
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
    /// [`ProofError::Mismatch`] when it belongs to none of the records, or when there are no records.
    pub async fn prove<R: StoredRecord>(
        &self,
        credential: &Credential,
        found: &Lookup<R>,
        caller: &Caller,
    ) -> Result<Arc<R>, ProofError> {
        let digest = credential.digest(self.0.secrets.newest());
        // Look for proofs of all records before any bcrypt: with several records, the proof may be for the last one.
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
        // Boxed, so that the future of a check with a proven key stays small.
        Box::pin(self.compute(credential, digest, found, caller)).await
    }

    /// Sets the highest cost among the active hashes, `None` if there is no hash. Refusals imitate this cost from now
    /// on. Does nothing if the setting names a cost.
    pub fn learn_cost(&self, highest: Option<u32>) {
        if self.0.config.cost == BcryptCost::Auto {
            let cost = highest.unwrap_or(DEFAULT_COST);
            if self.0.cost.swap(cost, Ordering::Relaxed) != cost {
                self.0.pool.imitate(cost);
            }
        }
    }

    /// Reports that a credential was not proven before the deadline of its check.
    pub fn report_late(&self) {
        self.0.pool.report_late();
    }

    /// Number of cached proofs and of cached refusals.
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
        let known_wrong =
            if found.records.is_empty() { inner.is_refused(&of_no_key, now) } else { records.is_empty() };
        if known_wrong {
            inner.lookups.negative.increment(1);
            return Err(ProofError::Mismatch);
        }
        if let Some(stored) = inner.proven_by_sha256(credential, digest, &records, now) {
            return Ok(stored);
        }
        if records.iter().any(|stored| !stored.record().hash.is_whole()) {
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
            Recall::Extended(left) => (self.share)(credential, *proof_key, ShareReason::Extended(left)),
        }
        self.lookups.hit.increment(1);
        true
    }

    /// Finds a valid proof among the proofs of the look-up. The proof may be made under any of the current secrets.
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

    /// Finds the record whose SHA-256 hash is the credential's. The hash is computed for every credential, so that prefixes
    /// with such hashes, with others and without any cost the same.
    ///
    /// The proof is cached here alone, and no use extends it: to make it again takes a microsecond.
    fn proven_by_sha256<R: StoredRecord>(
        &self,
        credential: &Credential,
        digest: Digest,
        records: &[Arc<R>],
        now: Instant,
    ) -> Option<Arc<R>> {
        let presented = Sha256Hash::of(credential);
        let stored = records.iter().find(|stored| match stored.record().hash.kind() {
            HashKind::Sha256(hash) => hash.matches(&presented, Some(&self.secrets)),
            HashKind::Bcrypt(_) => false,
        })?;
        self.lookups.miss.increment(1);
        self.pool.count_proven();
        let ttl = self.config.proof_ttl;
        self.proofs.insert_for(ProofKey::of(digest, stored.record()), ttl, ttl, now);
        Some(Arc::clone(stored))
    }

    fn is_refused(&self, proof_key: &ProofKey, now: Instant) -> bool {
        self.refusals.get(proof_key).is_some_and(|until| now < until)
    }

    /// Submits the attempt to the queue and waits for its outcome. `hashes` are the hashes of the attempt's records. It
    /// is empty if the prefix does not exist. Those that are not bcrypt have been compared before. Without any of bcrypt,
    /// there is nothing to compute.
    async fn first_proof(
        self: Arc<Self>,
        attempt: Attempt,
        credential: Credential,
        hashes: Vec<KeyHash>,
        from_memory: bool,
        caller: Caller,
    ) -> Result<usize, ProofError> {
        let now = caller.now.monotonic;
        // Another computation may have finished after the caller looked into the caches.
        if let Some(known) = self.remembered(&attempt, now) {
            return known;
        }
        let (prefix, proven) = (credential.prefix(), credential.clone());
        let bcrypt = |(place, hash): (usize, KeyHash)| Some((place, hash.into_bcrypt()?));
        let hashes: Vec<_> = hashes.into_iter().enumerate().filter_map(bcrypt).collect();
        let job = hashes.iter().map(|(_, hash)| hash.cost()).max().map(|highest| {
            // Holds until the next call of `learn_cost`, with the highest cost in the database.
            if self.cost.fetch_max(highest, Ordering::Relaxed) < highest {
                self.pool.imitate(highest);
            }
            let inner = Arc::clone(&self);
            let compute = Box::new(move || {
                let &(place, _) = hashes.iter().find(|(_, hash)| matches(&credential, hash))?;
                // Stored here, on the bcrypt thread: the caller may already have been rejected.
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
                    (self.share)(&proven, proof_key, ShareReason::Proven);
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

    /// The outcome of the attempt, if a proof or a refusal is cached.
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

    /// Caches a refusal. Refusals have their own cache, so that a flood of wrong secrets evicts no proof.
    fn remember_refusal(&self, attempt: &Attempt, now: Instant) {
        for proof_key in self.proof_keys(attempt) {
            self.refusals.insert(proof_key, now + self.config.negative_ttl);
        }
        self.refused.set(self.refusals.len() as f64);
    }

    /// All proof keys of an attempt: one for each record, or the one of a prefix that does not exist.
    fn proof_keys(&self, attempt: &Attempt) -> Vec<ProofKey> {
        let proof_keys: Vec<_> = (0..MAX_RECORDS).filter_map(|place| attempt.proof_key(place)).collect();
        if proof_keys.is_empty() {
            vec![ProofKey { digest: attempt.digest, key: None, hash: self.no_hash }]
        } else {
            proof_keys
        }
    }
}

impl Attempt {
    fn proof_key(&self, place: usize) -> Option<ProofKey> {
        let (id, hash) = self.records.get(place).copied().flatten()?;
        Some(ProofKey { digest: self.digest, key: Some(id), hash })
    }
}

/// Whether the credential has this hash. An unreadable hash would match nothing.
fn matches(credential: &Credential, hash: &BcryptHash) -> bool {
    bcrypt::verify(credential.expose(), hash.expose().unwrap_or_default()).unwrap_or(false)
}

#[cfg(test)]
mod tests;
