//! The tier in this process: records by prefix, unknown prefixes apart.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::Gauge;

use super::{Found, KeyStore, StoreError};
use crate::{
    cache::{Cache, cache},
    clock::Timestamps,
    credential::Prefix,
    decision::Tier,
    metrics::{CacheLookups, Metrics},
    record::{KeyRecord, StoredRecord},
    resilience::Singleflight,
    revocation::{Fence, Generation, WORST_CASE},
};

/// Remembers what the next tier found. Cheap to clone.
///
/// Known and unknown prefixes are bounded apart: a flood of invented keys evicts no good one. Records are held as `R`,
/// with room for what an adapter keeps of each.
pub struct Memory<S, R = KeyRecord>(Arc<Inner<S, R>>);

/// How much [`Memory`] holds, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct MemoryConfig {
    /// Known prefixes at the most, and as many unknown ones.
    pub capacity: usize,
    /// How long records are believed.
    pub record_ttl: Duration,
    /// How long an unknown prefix is believed to be unknown.
    pub negative_ttl: Duration,
    /// How long past their TTL records serve while no tier below answers.
    pub stale_if_error: Duration,
}

/// How long a stale record serves before the tier below is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// What a load from the next tier came to.
type LoadResult<R> = Result<Arc<Found<R>>, StoreError>;

struct Inner<S, R> {
    next: S,
    config: MemoryConfig,
    fence: Arc<Fence<Prefix>>,
    known: Cache<Prefix, Held<R>>,
    unknown: Cache<Prefix, Term>,
    /// What is asked for now, and whether with hashes.
    singleflight: Singleflight<(Prefix, bool), LoadResult<R>>,
    lookups: CacheLookups,
    entries: Entries,
}

#[derive(Clone)]
struct Held<R> {
    found: Arc<Found<R>>,
    term: Term,
    usable_until: Instant,
}

/// How long something is believed.
#[derive(Clone, Copy)]
struct Term {
    /// While changes are heard of.
    fresh_until: Instant,
    /// While they are not.
    unheard_until: Instant,
}

struct Entries {
    known: Gauge,
    unknown: Gauge,
}

impl<S: KeyStore, R: StoredRecord> Memory<S, R> {
    /// Puts an empty memory before `next`. What is read goes past `fence` before it is remembered.
    pub fn new(next: S, config: MemoryConfig, fence: Arc<Fence<Prefix>>, metrics: &Metrics) -> Self {
        Self(Arc::new(Inner {
            next,
            config,
            fence,
            known: cache(config.capacity),
            unknown: cache(config.capacity),
            singleflight: Singleflight::default(),
            lookups: metrics.cache_lookups(Tier::Memory.name(), "records"),
            entries: Entries {
                known: metrics.cache_entries("records"),
                unknown: metrics.cache_entries("unknown"),
            },
        }))
    }

    /// Drops what is held of these prefixes, or of all when `None`; whoever asks from now on gets nothing
    /// that was read before.
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

    /// Known and unknown prefixes that are held.
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
    async fn records(&self, prefix: Prefix, now: Timestamps) -> Result<Arc<Found<R>>, StoreError> {
        match self.0.recall(prefix, now.monotonic) {
            Some(found) => Ok(found),
            // Apart, so that a check that memory answers is not the size of one that asks further down.
            None => Box::pin(self.load(prefix, false, now)).await,
        }
    }

    async fn hashed(&self, prefix: Prefix, now: Timestamps) -> Result<Arc<Found<R>>, StoreError> {
        match self.0.known.get(&prefix).filter(|held| self.0.is_fresh(held.term, now.monotonic)) {
            Some(held) if held.found.is_hashed() => Ok(held.found),
            _ => Box::pin(self.load(prefix, true, now)).await,
        }
    }

    fn is_lost(&self) -> bool {
        self.0.next.is_lost()
    }
}

impl<S: KeyStore, R: StoredRecord> Memory<S, R> {
    async fn load(&self, prefix: Prefix, hashed: bool, now: Timestamps) -> Result<Arc<Found<R>>, StoreError> {
        let inner = Arc::clone(&self.0);
        self.0
            .singleflight
            .join((prefix, hashed), || async move { inner.load(prefix, hashed, now).await })
            .await?
    }
}

impl<S: KeyStore, R: StoredRecord> Inner<S, R> {
    fn recall(&self, prefix: Prefix, now: Instant) -> Option<Arc<Found<R>>> {
        if let Some(held) = self.known.get(&prefix).filter(|held| self.is_fresh(held.term, now)) {
            self.lookups.hit.increment(1);
            return Some(held.found);
        }
        if self.unknown.get(&prefix).is_some_and(|term| self.is_fresh(term, now)) {
            self.lookups.negative.increment(1);
            return Some(Arc::new(Found::fresh([], Tier::Memory)));
        }
        self.lookups.miss.increment(1);
        None
    }

    fn is_fresh(&self, term: Term, now: Instant) -> bool {
        now < if self.fence.is_up(now) { term.fresh_until } else { term.unheard_until }
    }

    async fn load(&self, prefix: Prefix, hashed: bool, now: Timestamps) -> Result<Arc<Found<R>>, StoreError> {
        let generation = self.fence.generation();
        let found = match hashed {
            true => self.next.hashed(prefix, now).await,
            false => self.next.records(prefix, now).await,
        };
        match found {
            Ok(found) => {
                // A standby that its primary does not reach is like a database that is lost.
                if found.age > self.config.record_ttl.saturating_add(self.config.stale_if_error) {
                    return Err(StoreError::Unavailable(
                        "it is a standby that does not follow its primary".into(),
                    ));
                }
                let found = Arc::new(hold(Arc::unwrap_or_clone(found)));
                self.remember(prefix, &found, generation, now.monotonic);
                Ok(found)
            }
            // What is held has perhaps no hashes, and what it has is proven already.
            Err(error) if !hashed => self.fall_back(prefix, generation, now.monotonic).ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// What is past its TTL serves on through an outage, for a while; who was unknown stays unknown to
    /// us, which is no answer. Past the fence, so that it does not bring back what is being dropped.
    fn fall_back(&self, prefix: Prefix, generation: Generation, now: Instant) -> Option<Arc<Found<R>>> {
        let mut found = None;
        self.fence.admit(prefix, generation, || {
            let held = self.known.get(&prefix).filter(|held| now < held.usable_until);
            let Some(mut held) = held else { return };
            Arc::make_mut(&mut held.found).stale = true;
            let until = (now + RETRY).min(held.usable_until);
            held.term = Term { fresh_until: until, unheard_until: until };
            found = Some(Arc::clone(&held.found));
            self.known.insert(prefix, held);
        });
        if found.is_some() {
            self.lookups.stale.increment(1);
        }
        found
    }

    /// Ages count from before the question was asked: an answer is never younger than it looks.
    fn remember(&self, prefix: Prefix, found: &Found<R>, generation: Generation, asked: Instant) {
        let read_at = asked.checked_sub(found.age).unwrap_or(asked);
        if found.records.is_empty() {
            // Cached too: unknown prefixes are what attackers send.
            self.fence.admit(prefix, generation, || {
                self.known.remove(&prefix);
                self.unknown.insert(prefix, Term::new(read_at, self.config.negative_ttl));
            });
            return self.count();
        }
        self.fence.admit_read(prefix, generation, found.seen.as_deref(), || {
            self.unknown.remove(&prefix);
            let term = Term::new(read_at, self.config.record_ttl);
            let usable_until = term.fresh_until + self.config.stale_if_error;
            let found = Found { tier: Tier::Memory, rows: Arc::default(), seen: None, ..found.clone() };
            self.known.insert(prefix, Held { found: Arc::new(found), term, usable_until });
        });
        self.count();
    }

    fn count(&self) {
        self.entries.known.set(self.known.len() as f64);
        self.entries.unknown.set(self.unknown.len() as f64);
    }
}

/// The same records, with room for what an adapter keeps of them.
fn hold<R: StoredRecord>(found: Found) -> Found<R> {
    let Found { records, proofs, tier, stale, age, seen, rows } = found;
    let records = records.iter().map(|record| Arc::new(R::from(KeyRecord::clone(record)))).collect();
    Found { records, proofs, tier, stale, age, seen, rows }
}

impl Term {
    /// Up to a tenth less than the TTL, so that entries made together do not expire together. Never more:
    /// a TTL is a promise about how old an answer can be.
    fn new(read_at: Instant, ttl: Duration) -> Self {
        let share = 1.0 - rand::random::<f64>() / 10.0;
        let until = |ttl: Duration| read_at + ttl.mul_f64(share);
        Self { fresh_until: until(ttl), unheard_until: until(ttl.min(WORST_CASE)) }
    }
}

#[cfg(test)]
mod tests;
