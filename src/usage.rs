//! Counts how often each key is used, and when it was used last. A background task writes the counts in batches.

use std::{
    cell::Cell,
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;

use metrics::Counter;
use time::OffsetDateTime;

use crate::{metrics::Metrics, record::KeyId};

mod recent;
mod refusals;
mod store;
mod writer;

use recent::RecentIds;
pub use store::{UsageStore, WriteError, WriteOutcome};
pub use writer::UsageWriter;

/// The usage that is not written yet. Cheap to clone. Checks count without waiting for each other.
#[derive(Clone)]
pub struct Usage(Arc<Inner>);

/// The use of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyUsage {
    /// Allowed requests.
    pub requests: u64,
    /// When the last of them came.
    pub last: OffsetDateTime,
}

/// The use of several keys.
pub type Batch = HashMap<KeyId, KeyUsage>;

/// Each thread counts in its own part, so that cores do not wait for each other.
const PARTS: usize = 16;

/// Maximum number of keys in one part while the database is unavailable. Further counts are lost, and counted as lost.
const KEYS: usize = 50_000;

struct Inner {
    is_on: bool,
    parts: [Mutex<Batch>; PARTS],
    recent: [Mutex<RecentIds>; PARTS],
    hasher: RandomState,
    lost: Counter,
}

impl Usage {
    /// Starts empty. Counts only if `is_on`.
    pub fn new(is_on: bool, metrics: &Metrics) -> Self {
        Self(Arc::new(Inner {
            is_on,
            parts: Default::default(),
            recent: Default::default(),
            hasher: RandomState::new(),
            lost: metrics.usage_lost(),
        }))
    }

    /// Counts an allowed request. `stream` is Envoy's id of it. A repeated check has the same id, and counts once.
    pub fn count(&self, key: KeyId, stream: &str, now: OffsetDateTime) {
        if !self.0.is_on {
            return;
        }
        if !stream.is_empty() {
            let id = self.0.hasher.hash_one(stream);
            if !self.0.recent[id as usize % PARTS].lock().is_first(id) {
                return;
            }
        }
        let mut part = self.0.parts[own_part()].lock();
        if part.len() >= KEYS && !part.contains_key(&key) {
            self.0.lost.increment(1);
            return;
        }
        add(&mut part, key, KeyUsage { requests: 1, last: now });
    }

    /// Takes everything that is not written yet.
    pub fn take(&self) -> Batch {
        let mut all = Batch::new();
        for part in &self.0.parts {
            for (key, used) in std::mem::take(&mut *part.lock()) {
                add(&mut all, key, used);
            }
        }
        all
    }

    /// Puts back what could not be written.
    pub fn put_back(&self, batch: Batch) {
        // Into all parts, since each is bounded.
        for (n, (key, used)) in batch.into_iter().enumerate() {
            add(&mut self.0.parts[n % PARTS].lock(), key, used);
        }
    }

    /// Counts as lost what a row refuses, and what may or may not have been written.
    fn lose(&self, batch: &Batch) {
        self.0.lost.increment(batch.values().map(|used| used.requests).sum());
    }

    /// Requests that are counted and not written yet.
    pub fn pending(&self) -> u64 {
        let requests = |part: &Mutex<Batch>| part.lock().values().map(|used| used.requests).sum::<u64>();
        self.0.parts.iter().map(requests).sum()
    }
}

fn add(batch: &mut Batch, key: KeyId, used: KeyUsage) {
    let sum = batch.entry(key).or_insert(KeyUsage { requests: 0, last: used.last });
    sum.requests += used.requests;
    sum.last = sum.last.max(used.last);
}

fn own_part() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % PARTS);
    }
    OWN.get()
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

    fn usage() -> (Usage, Metrics) {
        let metrics = Metrics::new().expect("builds");
        (Usage::new(true, &metrics), metrics)
    }

    #[test]
    fn requests_of_all_threads_are_added_up() {
        let (usage, _) = usage();
        std::thread::scope(|scope| {
            for thread in 0..8_i64 {
                let usage = usage.clone();
                scope.spawn(move || {
                    for n in 0..1000 {
                        let last = NOW + time::Duration::seconds(thread);
                        usage.count(KeyId(n % 2), &format!("{thread}-{n}"), last);
                    }
                });
            }
        });
        assert_eq!(usage.pending(), 8000);
        let used = KeyUsage { requests: 4000, last: NOW + time::Duration::seconds(7) };
        assert_eq!(usage.take(), Batch::from([(KeyId(0), used), (KeyId(1), used)]));
        assert_eq!((usage.pending(), usage.take().len()), (0, 0));
    }

    #[test]
    fn repeated_check_counts_once() {
        let (usage, _) = usage();
        for stream in ["7", "7", "8", "7", "", ""] {
            usage.count(KeyId(1), stream, NOW);
        }
        assert_eq!(usage.pending(), 4, "two streams, and two without an id");
    }

    #[test]
    fn usage_that_is_put_back_is_added_to_later_usage() {
        let (usage, _) = usage();
        usage.count(KeyId(1), "1", NOW);
        let batch = usage.take();
        usage.count(KeyId(1), "2", NOW - time::Duration::seconds(1));
        usage.put_back(batch);
        assert_eq!(usage.take()[&KeyId(1)], KeyUsage { requests: 2, last: NOW });
    }

    #[test]
    fn usage_beyond_the_bound_is_counted_as_lost() {
        let (usage, metrics) = usage();
        for key in 0..KEYS as i64 + 3 {
            usage.count(KeyId(key), "", NOW);
        }
        usage.count(KeyId(0), "", NOW);
        assert_eq!(usage.pending(), KEYS as u64 + 1, "a key that is known already is counted on");
        assert!(metrics.render().contains("keystile_usage_lost_total 3"));
    }
}
