//! A map by key behind many locks, so that callers rarely wait for each other.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::record::KeyId;

/// A value for each key. Only proven keys get one, so no stranger can fill the map.
#[derive(Debug)]
pub(super) struct Shards<T>(Box<[Mutex<HashMap<KeyId, T>>]>);

/// Enough that two cores rarely need the same lock.
const SHARDS: u64 = 64;

impl<T: Default> Shards<T> {
    pub(super) fn new() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }

    /// Runs `work` on the value of a key, which is created if needed. The shard is locked for that time, so `work` has
    /// to be short.
    pub(super) fn with<R>(&self, key: KeyId, work: impl FnOnce(&mut T) -> R) -> R {
        let shard = key.0.unsigned_abs() % SHARDS;
        work(self.0[shard as usize].lock().entry(key).or_default())
    }

    /// Visits all values, shard by shard, and drops those for which `keep` returns false.
    pub(super) fn retain(&self, mut keep: impl FnMut(KeyId, &mut T) -> bool) {
        for shard in &self.0 {
            shard.lock().retain(|key, value| keep(*key, value));
        }
    }
}
