//! The tier in this process: records by prefix, unknown prefixes apart.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::Gauge;
use quick_cache::sync::Cache;

use super::{Found, KeyStore, StoreError};
use crate::{
    credential::Prefix,
    decision::Tier,
    flight::Flights,
    metrics::{CacheLookups, Metrics},
    moment::Moment,
};

/// Remembers what the next tier found. Cheap to clone.
///
/// Known and unknown prefixes are bounded apart: a flood of invented keys evicts no good one.
pub struct Memory<S>(Arc<Inner<S>>);

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

struct Inner<S> {
    next: S,
    config: MemoryConfig,
    known: Cache<Prefix, Held>,
    unknown: Cache<Prefix, Instant>,
    flights: Flights<Prefix, Result<Found, StoreError>>,
    lookups: CacheLookups,
    entries: Entries,
}

#[derive(Clone)]
struct Held {
    found: Found,
    fresh_until: Instant,
    usable_until: Instant,
}

struct Entries {
    known: Gauge,
    unknown: Gauge,
}

impl<S: KeyStore> Memory<S> {
    /// Puts an empty memory before `next`.
    pub fn new(next: S, config: MemoryConfig, metrics: &Metrics) -> Self {
        Self(Arc::new(Inner {
            next,
            config,
            known: Cache::new(config.capacity),
            unknown: Cache::new(config.capacity),
            flights: Flights::default(),
            lookups: metrics.cache_lookups(Tier::Memory.name(), "records"),
            entries: Entries {
                known: metrics.cache_entries("records"),
                unknown: metrics.cache_entries("unknown"),
            },
        }))
    }
}

impl<S> Clone for Memory<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: KeyStore> KeyStore for Memory<S> {
    async fn records(&self, prefix: Prefix, now: Moment) -> Result<Found, StoreError> {
        if let Some(found) = self.0.recall(prefix, now.monotonic) {
            return Ok(found);
        }
        let inner = Arc::clone(&self.0);
        self.0.flights.join(prefix, || async move { inner.load(prefix, now).await }).await?
    }
}

impl<S: KeyStore> Inner<S> {
    fn recall(&self, prefix: Prefix, now: Instant) -> Option<Found> {
        if let Some(held) = self.known.get(&prefix).filter(|held| now < held.fresh_until) {
            self.lookups.hit.increment(1);
            return Some(held.found);
        }
        if self.unknown.get(&prefix).is_some_and(|fresh_until| now < fresh_until) {
            self.lookups.negative.increment(1);
            return Some(Found { records: Arc::default(), tier: Tier::Memory, stale: false });
        }
        self.lookups.miss.increment(1);
        None
    }

    async fn load(&self, prefix: Prefix, now: Moment) -> Result<Found, StoreError> {
        match self.next.records(prefix, now).await {
            Ok(found) => {
                self.remember(prefix, &found, now.monotonic);
                Ok(found)
            }
            Err(error) if error.is_outage() => self.fall_back(prefix, now.monotonic).ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// What is past its TTL serves on through an outage, for a while; who was unknown stays unknown to
    /// us, which is no answer.
    fn fall_back(&self, prefix: Prefix, now: Instant) -> Option<Found> {
        let mut held = self.known.get(&prefix).filter(|held| now < held.usable_until)?;
        self.lookups.stale.increment(1);
        held.found.stale = true;
        held.fresh_until = (now + RETRY).min(held.usable_until);
        self.known.insert(prefix, held.clone());
        Some(held.found)
    }

    /// Ages count from before the question was asked: an answer is never younger than it looks.
    fn remember(&self, prefix: Prefix, found: &Found, asked: Instant) {
        // Cached too: unknown prefixes are what attackers send.
        if found.records.is_empty() {
            self.known.remove(&prefix);
            self.unknown.insert(prefix, asked + jittered(self.config.negative_ttl));
        } else {
            self.unknown.remove(&prefix);
            let fresh_until = asked + jittered(self.config.record_ttl);
            let usable_until = fresh_until + self.config.stale_if_error;
            let found = Found { tier: Tier::Memory, ..found.clone() };
            self.known.insert(prefix, Held { found, fresh_until, usable_until });
        }
        self.entries.known.set(self.known.len() as f64);
        self.entries.unknown.set(self.unknown.len() as f64);
    }
}

/// Up to a tenth less, so that entries made together do not expire together. Never more: a TTL is
/// a promise about how old an answer can be.
fn jittered(ttl: Duration) -> Duration {
    ttl.mul_f64(1.0 - rand::random::<f64>() / 10.0)
}

#[cfg(test)]
mod tests;
