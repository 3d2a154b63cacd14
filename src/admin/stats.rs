//! The statistics at `/stats`: hit rates, entries and states as JSON, with Redis' own statistics.

use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::{
    metrics::{self, Metrics},
    redis::Redis,
    revocation::FeedState,
    store::Database,
};

/// The sources of the statistics. Cheap to clone.
#[derive(Clone)]
pub struct Stats {
    /// All counters and gauges.
    pub metrics: Metrics,
    /// The database, for the state of its connections.
    pub database: Database,
    /// Redis, where it is configured.
    pub redis: Option<Redis>,
    /// The state of the change feed.
    pub feed: watch::Receiver<FeedState>,
}

impl Stats {
    /// Whether Redis is configured.
    pub fn has_redis(&self) -> bool {
        self.redis.is_some()
    }

    /// The statistics as JSON.
    pub async fn to_json(&self) -> Value {
        let sum = |name: &str, labels: &[(&str, &str)]| self.metrics.sum(name, labels);
        let lookups = |tier: &str, kind: &str| {
            let of =
                |result| sum(metrics::CACHE_LOOKUPS, &[("tier", tier), ("kind", kind), ("result", result)]);
            Lookups {
                hits: of("hit") + of("negative"),
                misses: of("miss"),
                stale: of("stale"),
                odd: of("odd"),
            }
        };
        let tiers = if self.has_redis() { &["memory", "redis"][..] } else { &["memory"] };
        let by_tier: Map<_, _> = tiers
            .iter()
            .map(|tier| {
                let kinds =
                    ["records", "proofs"].map(|kind| (kind.to_owned(), lookups(tier, kind).to_json()));
                ((*tier).to_owned(), Value::Object(kinds.into_iter().collect()))
            })
            .collect();
        let entries: Map<_, _> = ["records", "unknown", "proofs", "refusals"]
            .map(|kind| (kind.to_owned(), json!(sum(metrics::CACHE_ENTRIES, &[("kind", kind)]))))
            .into_iter()
            .collect();
        let (places, connections) = self.database.room();
        let Lookups { hits, misses, .. } = lookups("memory", "records");
        json!({
            "enabled": true,
            "hits": hits,
            "misses": misses,
            "errors": sum(metrics::STORE_ERRORS, &[]),
            "hit_rate": rate(hits, misses),
            "tiers": by_tier,
            "entries": entries,
            "redis": self.redis_to_json().await,
            "database": {
                "store": self.database.name(),
                "up": sum(metrics::STORE_UP, &[("store", self.database.name())]) == 1,
                "connections": connections,
                "free_places": places,
            },
            "dependencies": super::dependencies_to_json(&self.metrics.states().snapshot()),
            "change_feed": self.feed.borrow().clone(),
            "bcrypt": { "waiting": sum(metrics::BCRYPT_WAITING, &[]) },
            "usage": { "pending": sum(metrics::USAGE_PENDING, &[]) },
        })
    }

    async fn redis_to_json(&self) -> Value {
        let Some(redis) = &self.redis else { return json!({ "enabled": false }) };
        match redis.usage().await {
            Ok(usage) => json!({
                "enabled": true,
                "up": true,
                "memory_bytes": usage.memory_bytes,
                "clients": usage.clients,
                "evicted_keys": usage.evicted_keys,
            }),
            Err(error) => json!({ "enabled": true, "up": false, "problem": error.to_string() }),
        }
    }
}

struct Lookups {
    hits: u64,
    misses: u64,
    stale: u64,
    odd: u64,
}

impl Lookups {
    fn to_json(&self) -> Value {
        let Self { hits, misses, stale, odd } = *self;
        json!({ "hits": hits, "misses": misses, "stale": stale, "odd": odd, "hit_rate": rate(hits, misses + odd) })
    }
}

fn rate(hits: u64, misses: u64) -> f64 {
    if hits == 0 { 0.0 } else { hits as f64 / (hits + misses) as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_of_nothing_is_none() {
        assert_eq!((rate(0, 0), rate(0, 5), rate(3, 1)), (0.0, 0.0, 0.75));
    }
}
