//! The tier in this process: records by prefix, and a separate cache of unknown prefixes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::Gauge;

use super::{KeyStore, Lookup, StoreError};
use crate::{
    cache::{Cache, cache},
    clock::Timestamps,
    credential::Prefix,
    decision::Tier,
    dependencies::{Cause, Dependency, ErrorText, Reporter},
    metrics::{CacheLookups, Metrics},
    record::{KeyRecord, StoredRecord},
    resilience::{CallError, Singleflight},
    revocation::{Fence, Generation, WORST_CASE},
};

/// Caches the answers of the next tier. Cheap to clone.
///
/// Known and unknown prefixes have separate bounds: a flood of invented keys evicts no valid key.
/// Records are cached as `R`, with room for what an adapter memoises of each.
pub struct Memory<S, R = KeyRecord>(Arc<Inner<S, R>>);

/// The capacity and the TTLs of [`Memory`].
#[derive(Debug, Clone, Copy)]
pub struct MemoryConfig {
    /// Maximum number of known prefixes. Unknown prefixes have a separate cache of the same size.
    pub capacity: usize,
    /// How long records are valid.
    pub record_ttl: Duration,
    /// How long a prefix counts as unknown.
    pub negative_ttl: Duration,
    /// How long past their TTL records are used while no lower tier answers.
    pub stale_if_error: Duration,
}

/// How long a stale record is used before the next read of the lower tier.
const RETRY: Duration = Duration::from_secs(1);

/// The result of a read of the next tier.
type LoadResult<R> = Result<Arc<Lookup<R>>, StoreError>;

struct Inner<S, R> {
    next: S,
    config: MemoryConfig,
    fence: Arc<Fence<Prefix>>,
    known: Cache<Prefix, CachedLookup<R>>,
    unknown: Cache<Prefix, Freshness>,
    /// Reads in progress, and whether they are with hashes.
    singleflight: Singleflight<(Prefix, bool), LoadResult<R>>,
    lookups: CacheLookups,
    sizes: Sizes,
    reporter: Reporter,
}

#[derive(Clone)]
struct CachedLookup<R> {
    lookup: Arc<Lookup<R>>,
    freshness: Freshness,
    usable_until: Instant,
}

/// How long an entry is valid.
#[derive(Clone, Copy)]
struct Freshness {
    /// While the change feed is up.
    until: Instant,
    /// While it is not.
    until_without_feed: Instant,
}

struct Sizes {
    known: Gauge,
    unknown: Gauge,
}

impl<S: KeyStore, R: StoredRecord> Memory<S, R> {
    /// Puts an empty cache before `next`. `fence` admits each answer before it is cached.
    pub fn new(next: S, config: MemoryConfig, fence: Arc<Fence<Prefix>>, metrics: &Metrics) -> Self {
        Self(Arc::new(Inner {
            next,
            config,
            fence,
            known: cache(config.capacity),
            unknown: cache(config.capacity),
            singleflight: Singleflight::default(),
            lookups: metrics.cache_lookups(Tier::Memory.name(), "records"),
            sizes: Sizes {
                known: metrics.cache_entries("records"),
                unknown: metrics.cache_entries("unknown"),
            },
            reporter: metrics.reporter(Dependency::Database),
        }))
    }

    /// Drops these prefixes, or all when `None`. Later calls get no answer that was read before.
    pub fn forget(&self, prefixes: Option<&[Prefix]>) {
        let Some(prefixes) = prefixes else {
            self.0.known.clear();
            self.0.unknown.clear();
            self.0.singleflight.forget_all();
            return self.0.count();
        };
        for prefix in prefixes {
            self.0.known.remove(prefix);
            self.0.unknown.remove(prefix);
            self.0.singleflight.forget(&(*prefix, false));
            self.0.singleflight.forget(&(*prefix, true));
        }
        self.0.count();
    }

    /// Number of cached prefixes, known and unknown.
    pub fn len(&self) -> (usize, usize) {
        (self.0.known.len(), self.0.unknown.len())
    }
}

impl<S, R> Clone for Memory<S, R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: KeyStore, R: StoredRecord> KeyStore<R> for Memory<S, R> {
    async fn records(&self, prefix: Prefix, now: Timestamps) -> Result<Arc<Lookup<R>>, StoreError> {
        match self.0.recall(prefix, now.monotonic) {
            Some(lookup) => Ok(lookup),
            // Boxed, so that the future of a check that memory answers is small.
            None => Box::pin(self.load(prefix, false, now)).await,
        }
    }

    async fn hashed(&self, prefix: Prefix, now: Timestamps) -> Result<Arc<Lookup<R>>, StoreError> {
        match self.0.known.get(&prefix).filter(|entry| self.0.is_fresh(entry.freshness, now.monotonic)) {
            Some(entry) if entry.lookup.is_hashed() => Ok(entry.lookup),
            _ => Box::pin(self.load(prefix, true, now)).await,
        }
    }

    fn is_lost(&self) -> bool {
        self.0.next.is_lost()
    }

    fn report_late(&self) {
        // While Keystile's own reads fail, they report why.
        if !self.is_lost() {
            let problem = "look-ups were not answered before the deadline of their checks (KEYSTILE_TIMEOUT)";
            self.0.reporter.fails_for(1, Cause::NoAnswer, problem);
        }
    }
}

impl<S: KeyStore, R: StoredRecord> Memory<S, R> {
    async fn load(
        &self,
        prefix: Prefix,
        hashed: bool,
        now: Timestamps,
    ) -> Result<Arc<Lookup<R>>, StoreError> {
        let inner = Arc::clone(&self.0);
        let loaded = self
            .0
            .singleflight
            .join((prefix, hashed), || async move { inner.load(prefix, hashed, now).await });
        loaded.await.unwrap_or_else(|abandoned| {
            let error = StoreError::from(abandoned);
            self.0.reporter.fails_for(1, error.cause(), error.problem());
            Err(error)
        })
    }
}

impl<S: KeyStore, R: StoredRecord> Inner<S, R> {
    fn recall(&self, prefix: Prefix, now: Instant) -> Option<Arc<Lookup<R>>> {
        if let Some(entry) = self.known.get(&prefix).filter(|entry| self.is_fresh(entry.freshness, now)) {
            self.lookups.hit.increment(1);
            return Some(entry.lookup);
        }
        if self.unknown.get(&prefix).is_some_and(|freshness| self.is_fresh(freshness, now)) {
            self.lookups.negative.increment(1);
            return Some(Arc::new(Lookup::fresh([], Tier::Memory)));
        }
        self.lookups.miss.increment(1);
        None
    }

    fn is_fresh(&self, freshness: Freshness, now: Instant) -> bool {
        now < if self.fence.is_up(now) { freshness.until } else { freshness.until_without_feed }
    }

    async fn load(
        &self,
        prefix: Prefix,
        hashed: bool,
        now: Timestamps,
    ) -> Result<Arc<Lookup<R>>, StoreError> {
        // Another read may have ended after the caller looked.
        let cached = self.known.get(&prefix).filter(|entry| self.is_fresh(entry.freshness, now.monotonic));
        if let Some(entry) = cached.filter(|entry| !hashed || entry.lookup.is_hashed()) {
            return Ok(entry.lookup);
        }
        let generation = self.fence.generation();
        let lookup =
            if hashed { self.next.hashed(prefix, now).await } else { self.next.records(prefix, now).await };
        match lookup {
            Ok(lookup) => {
                // A standby that lags this far behind counts as an outage.
                if lookup.age > self.config.record_ttl.saturating_add(self.config.stale_if_error) {
                    let error = StoreError::Unavailable(ErrorText::new(
                        Cause::ReadOnly,
                        "it is a standby that does not follow its primary",
                    ));
                    self.reporter.fails_for(1, error.cause(), error.problem());
                    return Err(error);
                }
                let lookup = Arc::new(stored(Arc::unwrap_or_clone(lookup)));
                self.insert(prefix, &lookup, generation, now.monotonic);
                Ok(lookup)
            }
            // A cached entry may have no hashes, and its proofs are known already.
            Err(error) if !hashed => self.fall_back(prefix, generation, now.monotonic).ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// Uses an entry past its TTL during an outage, for a limited time. An unknown prefix has no such entry. The fence
    /// admits it, so that an entry that is being dropped does not return.
    fn fall_back(&self, prefix: Prefix, generation: Generation, now: Instant) -> Option<Arc<Lookup<R>>> {
        let mut lookup = None;
        self.fence.admit(prefix, generation, || {
            let entry = self.known.get(&prefix).filter(|entry| now < entry.usable_until);
            let Some(mut entry) = entry else { return };
            Arc::make_mut(&mut entry.lookup).stale = true;
            let until = (now + RETRY).min(entry.usable_until);
            entry.freshness = Freshness { until, until_without_feed: until };
            lookup = Some(Arc::clone(&entry.lookup));
            self.known.insert(prefix, entry);
        });
        if lookup.is_some() {
            self.lookups.stale.increment(1);
        }
        lookup
    }

    /// Caches an answer. Ages count from the start of the read, so an answer is never older than its age.
    fn insert(&self, prefix: Prefix, lookup: &Lookup<R>, generation: Generation, read_started: Instant) {
        let read_at = read_started.checked_sub(lookup.age).unwrap_or(read_started);
        if lookup.records.is_empty() {
            // Cached as well: attackers send unknown prefixes.
            self.fence.admit(prefix, generation, || {
                self.known.remove(&prefix);
                self.unknown.insert(prefix, Freshness::new(read_at, self.config.negative_ttl));
            });
            return self.count();
        }
        self.fence.admit_read(prefix, generation, lookup.seen.as_deref(), || {
            self.unknown.remove(&prefix);
            let freshness = Freshness::new(read_at, self.config.record_ttl);
            let usable_until = freshness.until + self.config.stale_if_error;
            let lookup = Lookup { tier: Tier::Memory, rows: Arc::default(), seen: None, ..lookup.clone() };
            self.known.insert(prefix, CachedLookup { lookup: Arc::new(lookup), freshness, usable_until });
        });
        self.count();
    }

    fn count(&self) {
        self.sizes.known.set(self.known.len() as f64);
        self.sizes.unknown.set(self.unknown.len() as f64);
    }
}

/// The same records, with room for what an adapter memoises of each.
fn stored<R: StoredRecord>(lookup: Lookup) -> Lookup<R> {
    let Lookup { records, proofs, tier, stale, age, seen, rows } = lookup;
    let records = records.iter().map(|record| Arc::new(R::from(KeyRecord::clone(record)))).collect();
    Lookup { records, proofs, tier, stale, age, seen, rows }
}

impl Freshness {
    /// Up to a tenth less than the TTL, so that entries created together do not expire together. Never more: a TTL limits
    /// the age of an answer.
    fn new(read_at: Instant, ttl: Duration) -> Self {
        let share = 1.0 - rand::random::<f64>() / 10.0;
        let until = |ttl: Duration| read_at + ttl.mul_f64(share);
        Self { until: until(ttl), until_without_feed: until(ttl.min(WORST_CASE)) }
    }
}

#[cfg(test)]
mod tests;
