//! Keys whose rows refused their usage: when each is tried again, and when its count is abandoned.

use std::{collections::HashMap, fmt::Display, time::Duration};

use tokio::time::Instant;
use tracing::{info, warn};

use crate::record::KeyId;

/// Keys whose rows refused their usage. Each is written alone.
#[derive(Debug, Default)]
pub(super) struct Refusals(HashMap<KeyId, RowRefusal>);

#[derive(Debug)]
struct RowRefusal {
    tries: u32,
    retry_at: Instant,
    /// Rows that had been written when this one refused for the first time.
    rows_written: u64,
}

/// How often a row is tried before its count is abandoned, which takes 31 s.
const TRIES: u32 = 6;

/// The pause after the first try. It doubles with each try.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

/// Maximum number of remembered refusals. Other rows that refuse are found by splitting batches, each time.
const CAPACITY: usize = 10_000;

/// Maximum number of ids in a log line.
const NAMED: usize = 10;

impl Refusals {
    /// When this key is due for its next try. `None` when its row has not refused.
    pub(super) fn retry_at(&self, key: KeyId) -> Option<Instant> {
        self.0.get(&key).map(|refusal| refusal.retry_at)
    }

    /// Remembers that a row refused when it was written alone. Returns whether its count is to be abandoned.
    ///
    /// `rows_written` counts all rows so far. While no row is written, the cause may not be this row.
    pub(super) fn add(&mut self, key: KeyId, error: &impl Display, rows_written: u64) -> bool {
        let now = Instant::now();
        if self.0.len() >= CAPACITY && !self.0.contains_key(&key) {
            return false;
        }
        let refusal = self.0.entry(key).or_insert_with(|| {
            warn!(key_id = key.0, %error, "a row refuses its usage; it is tried alone, and abandoned after 31 s");
            RowRefusal { tries: 0, retry_at: now, rows_written }
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
                info!(key_id = key.0, "a row accepts its usage again");
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
