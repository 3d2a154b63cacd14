//! Notes of values that are too long for a header: counted each time, logged once for a key.

use std::collections::HashSet;

use parking_lot::Mutex;

use metrics::Counter;
use tracing::warn;

use super::headers::TABLE;
use crate::{metrics::Metrics, record::KeyRecord};

/// Who is told of them.
pub(super) struct Truncation {
    counters: Vec<(&'static str, Counter)>,
    /// Keys that were logged, for as long as there are not too many.
    logged: Mutex<HashSet<i64>>,
}

/// Keys that are remembered as logged. Past it, some are logged again.
const MAX_LOGGED: usize = 10_000;

impl Truncation {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let counters = TABLE.iter().map(|header| (header.name, metrics.truncated_headers(header.name)));
        Self { counters: counters.collect(), logged: Mutex::default() }
    }

    /// Notes which headers of an answer for this key are too long.
    pub(super) fn note(&self, headers: &[&'static str], record: Option<&KeyRecord>) {
        let Some(record) = record.filter(|_| !headers.is_empty()) else { return };
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
