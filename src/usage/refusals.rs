//! Keys whose rows refused their usage: when each is tried again, and when its count is given up.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;
use tracing::{info, warn};

use crate::{record::KeyId, store::StoreError};

/// Keys whose rows refused their usage. Each is written alone.
#[derive(Debug, Default)]
pub(super) struct Refusals(HashMap<KeyId, Refusal>);

#[derive(Debug)]
struct Refusal {
    tries: u32,
    retry_at: Instant,
    /// Rows that had been written when this one refused for the first time.
    rows_written: u64,
}

/// How often a row is tried before its count is given up: over 31 s.
const TRIES: u32 = 6;

/// The pause after the first try. It doubles with each.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

/// Refusals that are remembered. Beyond that a row is found by splitting, each time.
const CAPACITY: usize = 10_000;

/// Ids that a log line names.
const NAMED: usize = 10;

impl Refusals {
    /// When this key is to be tried again; `None` when its row has not refused.
    pub(super) fn retry_at(&self, key: KeyId) -> Option<Instant> {
        self.0.get(&key).map(|refusal| refusal.retry_at)
    }

    /// Remembers that a row refused when it was written alone; returns whether its count is to be given up.
    ///
    /// `rows_written` counts all rows so far: while none is written, it is not known to be the fault of this row.
    pub(super) fn add(&mut self, key: KeyId, error: &StoreError, rows_written: u64) -> bool {
        let now = Instant::now();
        if self.0.len() >= CAPACITY && !self.0.contains_key(&key) {
            return false;
        }
        let refusal = self.0.entry(key).or_insert_with(|| {
            warn!(key_id = key.0, %error, "a row refuses its usage; it is tried alone, and given up after 31 s");
            Refusal { tries: 0, retry_at: now, rows_written }
        });
        refusal.tries = refusal.tries.saturating_add(1);
        let pause = PAUSE * 2u32.saturating_pow(refusal.tries.min(16) - 1);
        refusal.retry_at = now + pause.min(LONGEST_PAUSE);
        refusal.tries >= TRIES && rows_written > refusal.rows_written
    }

    /// Forgets keys whose rows were written.
    pub(super) fn remove<'a>(&mut self, keys: impl Iterator<Item = &'a KeyId>) {
        if self.0.is_empty() {
            return;
        }
        for key in keys {
            if self.0.remove(key).is_some() {
                info!(key_id = key.0, "a row takes its usage again");
            }
        }
    }

    /// Some of the keys, for a log line.
    pub(super) fn some_ids(&self) -> Vec<i64> {
        let mut ids: Vec<_> = self.0.keys().map(|key| key.0).collect();
        ids.sort_unstable();
        ids.truncate(NAMED);
        ids
    }
}
