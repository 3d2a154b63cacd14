//! What `/stats` says: the metrics that people ask for, as JSON, and what Redis says of itself.

use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::{metrics::Metrics, redis::Redis, revocation::FeedState, store::Database};

/// Where the statistics come from. Cheap to clone.
#[derive(Clone)]
pub struct Stats {
    /// Everything that is counted.
    pub metrics: Metrics,
    /// The database, for its connections.
    pub database: Database,
    /// Redis, where there is one.
    pub redis: Option<Redis>,
    /// How changes are heard of.
    pub feed: watch::Receiver<FeedState>,
}

/// One number of the metrics, and what it is about.
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, &'a str)>,
    value: f64,
}

impl Stats {
    /// Whether there is to be a Redis.
    pub fn has_redis(&self) -> bool {
        self.redis.is_some()
    }

    /// All of it.
    pub async fn tell(&self) -> Value {
        let text = self.metrics.render();
        let samples: Vec<_> = text.lines().filter_map(sample).collect();
        let sum = |name: &str, labels: &[(&str, &str)]| -> u64 {
            let matching = samples.iter().filter(|sample| {
                sample.name == name && labels.iter().all(|label| sample.labels.contains(label))
            });
            matching.map(|sample| sample.value as u64).sum()
        };
        let lookups = |tier: &str, kind: &str| {
            let of = |result| {
                sum("keystile_cache_lookups_total", &[("tier", tier), ("kind", kind), ("result", result)])
            };
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
                let kinds = ["records", "proofs"].map(|kind| (kind.to_owned(), lookups(tier, kind).tell()));
                ((*tier).to_owned(), Value::Object(kinds.into_iter().collect()))
            })
            .collect();
        let entries: Map<_, _> = ["records", "unknown", "proofs", "refusals"]
            .map(|kind| (kind.to_owned(), json!(sum("keystile_cache_entries", &[("kind", kind)]))))
            .into_iter()
            .collect();
        let (places, connections) = self.database.room();
        let Lookups { hits, misses, .. } = lookups("memory", "records");
        json!({
            "enabled": true,
            "hits": hits,
            "misses": misses,
            "errors": sum("keystile_store_errors_total", &[]),
            "hit_rate": rate(hits, misses),
            "tiers": by_tier,
            "entries": entries,
            "redis": self.tell_redis().await,
            "database": {
                "store": self.database.name(),
                "up": sum("keystile_store_up", &[("store", self.database.name())]) == 1,
                "connections": connections,
                "free_places": places,
            },
            "change_feed": self.feed.borrow().clone(),
            "bcrypt": { "waiting": sum("keystile_bcrypt_waiting", &[]) },
            "usage": { "pending": sum("keystile_usage_pending", &[]) },
        })
    }

    async fn tell_redis(&self) -> Value {
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
    fn tell(&self) -> Value {
        let Self { hits, misses, stale, odd } = *self;
        json!({ "hits": hits, "misses": misses, "stale": stale, "odd": odd, "hit_rate": rate(hits, misses + odd) })
    }
}

fn rate(hits: u64, misses: u64) -> f64 {
    if hits == 0 { 0.0 } else { hits as f64 / (hits + misses) as f64 }
}

/// Reads `name{label="value",…} number`. No label of ours has a comma or a quote in its value.
fn sample(line: &str) -> Option<Sample<'_>> {
    let (head, value) = line.rsplit_once(' ').filter(|_| !line.starts_with('#'))?;
    let (name, labels) = head.split_once('{').unwrap_or((head, ""));
    let labels = labels.trim_end_matches('}').split(',');
    let labels = labels.filter_map(|label| {
        let (name, value) = label.split_once('=')?;
        Some((name, value.trim_matches('"')))
    });
    Some(Sample { name, labels: labels.collect(), value: value.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exported_numbers_are_read_with_their_labels() {
        let read = sample("keystile_x_total{tier=\"memory\",kind=\"records\"} 12").expect("a sample");
        assert_eq!((read.name, read.value), ("keystile_x_total", 12.0));
        assert_eq!(read.labels, [("tier", "memory"), ("kind", "records")]);
        assert_eq!(
            sample("keystile_y 0.5").map(|sample| (sample.name, sample.value)),
            Some(("keystile_y", 0.5))
        );
        assert!(sample("# HELP keystile_y Something 1").is_none());
    }

    #[test]
    fn rate_of_nothing_is_none() {
        assert_eq!((rate(0, 0), rate(0, 5), rate(3, 1)), (0.0, 0.0, 0.75));
    }
}
