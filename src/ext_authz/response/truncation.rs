//! Reports values that are too long for a header: counts each one, and logs once for each key.

use std::collections::HashSet;

use metrics::Counter;
use parking_lot::Mutex;
use tracing::warn;

use super::headers::TABLE;
use crate::{metrics::Metrics, record::KeyRecord};

/// The metrics, and the keys that were logged.
pub(super) struct Truncation {
    counters: Vec<(&'static str, Counter)>,
    /// Keys that were logged. Emptied when there are too many.
    logged: Mutex<HashSet<i64>>,
}

/// Maximum number of keys that are remembered as logged.
const MAX_LOGGED: usize = 10_000;

impl Truncation {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let counters = TABLE.iter().map(|header| (header.name, metrics.truncated_headers(header.name)));
        Self { counters: counters.collect(), logged: Mutex::default() }
    }

    /// Reports the headers of this key that are too long.
    pub(super) fn note(&self, headers: &[&'static str], record: &KeyRecord) {
        if headers.is_empty() {
            return;
        }
        for (_, counter) in self.counters.iter().filter(|(name, _)| headers.contains(name)) {
            counter.increment(1);
        }
        let mut logged = self.logged.lock();
        if logged.len() >= MAX_LOGGED {
            logged.clear();
        }
        if logged.insert(record.id.0) {
            warn!(
                key_id = record.id.0,
                headers = headers.join(","),
                "the upstream is sent !truncated for what is too long for a header"
            );
        }
    }
}
