//! The tier that instances share: records and proofs in Redis.
//!
//! An entry is sealed. It has its age, and the changes that the database had seen when it was read. So a revocation does
//! not depend on Redis: every instance learns of it from the database, and ignores entries that have not seen it. A late
//! write to Redis is harmless for the same reason.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tracing::debug;

use super::{KeyStore, Lookup, StoreError};
use crate::{
    clock::Timestamps,
    config::AccountLock,
    credential::{CacheSecrets, Digest, Prefix},
    decision::Tier,
    dependencies::{Dependency, Reporter},
    metrics::{CacheLookups, Metrics},
    proof::{Proof, ProofKey},
    redis::{Redis, RedisError, STORE},
    resilience::CallError,
    revocation::{Fence, MEMORY, WORST_CASE},
};

mod commands;
pub mod envelope;

use commands::{Commands, RawEntries, RawEntry, field_name, newest, proofs_name, records_name};
use envelope::{Envelopes, InvalidEntry, RedisTimestamps};

/// Shares the answers of the next tier between instances. Cheap to clone.
pub struct RedisTier<S>(Arc<Inner<S>>);

/// The settings of [`RedisTier`].
#[derive(Debug, Clone, Copy)]
pub struct RedisTierConfig {
    /// How long records are shared.
    pub record_ttl: Duration,
    /// How long proofs are shared.
    pub proof_ttl: Duration,
    /// Whether a locked account stops its keys.
    pub account_lock: AccountLock,
}

/// Maximum number of concurrent writes. Further writes are dropped: another instance will make them.
const WRITES: usize = 64;

struct Inner<S> {
    next: S,
    commands: Commands,
    envelopes: Envelopes,
    config: RedisTierConfig,
    fence: Arc<Fence<Prefix>>,
    writes: Arc<Semaphore>,
    records: CacheLookups,
    proofs: CacheLookups,
    reporter: Reporter,
}

impl<S: KeyStore> RedisTier<S> {
    /// Puts Redis before `next`. Entries are sealed under `secrets`. `fence` decides which of them are current.
    pub fn new(
        next: S,
        redis: Redis,
        secrets: CacheSecrets,
        config: RedisTierConfig,
        fence: Arc<Fence<Prefix>>,
        metrics: &Metrics,
    ) -> Self {
        let record_ttl = config.record_ttl.min(MEMORY / 2);
        Self(Arc::new(Inner {
            next,
            commands: Commands::new(redis, metrics),
            envelopes: Envelopes::new(secrets, config.account_lock),
            config: RedisTierConfig { record_ttl, ..config },
            fence,
            writes: Arc::new(Semaphore::new(WRITES)),
            records: metrics.cache_lookups(Tier::Redis.name(), "records"),
            proofs: metrics.cache_lookups(Tier::Redis.name(), "proofs"),
            reporter: metrics.reporter(Dependency::RedisCache),
        }))
    }

    /// Reads and writes as a look-up does, without leaving anything.
    ///
    /// # Errors
    /// [`RedisError`] with the reason why Redis cannot be used, such as a missing right.
    pub async fn probe(&self) -> Result<(), RedisError> {
        self.0.commands.probe().await
    }

    /// Shares a proof with other instances, in the background. It is valid for `longest` at most, however often it is used.
    pub fn share(&self, prefix: Prefix, proof_key: ProofKey, longest: Duration, now: Timestamps) {
        let (name, field) = (proofs_name(prefix), proof_key.digest.to_text());
        let name_of_field = field_name(&name, &field);
        let Some(entry) = self.0.envelopes.proof(&name_of_field, &proof_key, now.wall, now.wall + longest)
        else {
            return;
        };
        let inner = Arc::clone(&self.0);
        let ttl = self.0.config.proof_ttl;
        self.0.in_background(async move { inner.commands.append_proof(name, field, entry, ttl).await });
    }
}

impl<S> Clone for RedisTier<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: KeyStore> KeyStore for RedisTier<S> {
    async fn records(&self, prefix: Prefix, now: Timestamps) -> Result<Arc<Lookup>, StoreError> {
        let (lookup, redis_now) = self.0.read(prefix, now).await;
        match lookup {
            Some(lookup) => Ok(Arc::new(lookup)),
            None => self.fill(prefix, now, redis_now).await,
        }
    }

    /// Only for records that are in Redis already, so the answer is not shared.
    async fn hashed(&self, prefix: Prefix, now: Timestamps) -> Result<Arc<Lookup>, StoreError> {
        self.0.next.hashed(prefix, now).await
    }

    fn is_lost(&self) -> bool {
        self.0.next.is_lost()
    }
}

impl<S: KeyStore> RedisTier<S> {
    /// Unknown prefixes are not shared: invented keys would fill Redis. Records are not shared if Redis did not return its
    /// time before they were read.
    async fn fill(
        &self,
        prefix: Prefix,
        now: Timestamps,
        redis_now: Option<OffsetDateTime>,
    ) -> Result<Arc<Lookup>, StoreError> {
        let generation = self.0.fence.generation();
        let lookup = self.0.next.hashed(prefix, now).await?;
        let admitted = || self.0.fence.admit_read(prefix, generation, lookup.seen.as_deref(), || ());
        if let Some(redis) = redis_now
            && !lookup.records.is_empty()
            && admitted()
        {
            let name = records_name(prefix);
            let entry =
                self.0.envelopes.records(&name, &lookup, RedisTimestamps { instance: now.wall, redis });
            let inner = Arc::clone(&self.0);
            let ttl = self.0.config.record_ttl;
            self.0.in_background(async move { inner.commands.write_records(name, entry, ttl).await });
        }
        Ok(lookup)
    }
}

impl<S: KeyStore> Inner<S> {
    /// The valid entries in Redis, and the time there. An outage of Redis is a miss.
    async fn read(&self, prefix: Prefix, now: Timestamps) -> (Option<Lookup>, Option<OffsetDateTime>) {
        match self.commands.fetch(prefix).await {
            Ok(RawEntries { redis_now: Some(redis), records, proofs }) => {
                let at = RedisTimestamps { instance: now.wall, redis };
                (self.accept(prefix, records, proofs, at, now.monotonic), Some(redis))
            }
            Ok(RawEntries { redis_now: None, .. }) => {
                self.records.miss.increment(1);
                (None, None)
            }
            Err(error) => {
                // The probe reports an outage.
                if !error.is_outage() {
                    self.reporter.fails_for(1, error.cause(), error.problem());
                }
                debug!(%error, store = STORE, "Redis is skipped");
                self.records.miss.increment(1);
                (None, None)
            }
        }
    }

    fn accept(
        &self,
        prefix: Prefix,
        records: Option<RawEntry>,
        proofs: Option<RawEntry>,
        now: RedisTimestamps,
        monotonic: Instant,
    ) -> Option<Lookup> {
        let records =
            records.map(|entry| entry.and_then(|entry| self.read_records(prefix, &entry, now, monotonic)));
        let lookup = valid_entry(records, &self.records)?;
        if !self.fence.believes(prefix, lookup.seen.as_deref()) {
            self.records.miss.increment(1);
            return None;
        }
        self.records.hit.increment(1);
        Some(Lookup { proofs: self.read_proofs(prefix, proofs, now.instance), ..lookup })
    }

    fn read_records(
        &self,
        prefix: Prefix,
        entry: &str,
        now: RedisTimestamps,
        monotonic: Instant,
    ) -> Result<Lookup, InvalidEntry> {
        let without_feed = if self.fence.is_up(monotonic) { Duration::MAX } else { WORST_CASE };
        let oldest = self.config.record_ttl.min(without_feed);
        let lookup = self.envelopes.read_records(&records_name(prefix), entry, now, oldest)?;
        if lookup.records.iter().all(|record| record.prefix == prefix) {
            Ok(lookup)
        } else {
            Err(InvalidEntry::Content)
        }
    }

    fn read_proofs(&self, prefix: Prefix, proofs: Option<RawEntry>, now: OffsetDateTime) -> Arc<[Proof]> {
        let name = proofs_name(prefix);
        let read = |(field, entry): (&str, &str)| {
            let digest = Digest::parse(field).ok_or(InvalidEntry::Content)?;
            let name = field_name(&name, field);
            self.envelopes.read_proof(&name, digest, entry, now, self.config.proof_ttl)
        };
        let proofs = proofs.and_then(|proofs| valid_entry(Some(proofs), &self.proofs)).unwrap_or_default();
        let read = newest(&proofs).into_iter().map(read);
        let proofs: Arc<[_]> = read.filter_map(|proof| valid_entry(Some(proof), &self.proofs)).collect();
        let count = if proofs.is_empty() { &self.proofs.miss } else { &self.proofs.hit };
        count.increment(1);
        proofs
    }

    fn in_background(&self, write: impl Future<Output = Result<(), RedisError>> + Send + 'static) {
        let Ok(permit) = Arc::clone(&self.writes).try_acquire_owned() else { return };
        let reporter = self.reporter.clone();
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = write.await {
                if !error.is_outage() {
                    reporter.fails_for(1, error.cause(), error.problem());
                }
                debug!(%error, store = STORE, outage = error.is_outage(), "an entry was not shared");
            }
        });
    }
}

/// The entry, if it exists and is valid. Counts a missing or invalid one.
fn valid_entry<T>(read: Option<Result<T, InvalidEntry>>, lookups: &CacheLookups) -> Option<T> {
    match read {
        Some(Ok(value)) => Some(value),
        Some(Err(error)) => {
            debug!(%error, store = STORE, "an entry in Redis is ignored");
            lookups.invalid.increment(1);
            None
        }
        None => {
            lookups.miss.increment(1);
            None
        }
    }
}
