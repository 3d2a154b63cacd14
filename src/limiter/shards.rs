//! What is held for each key, behind many short locks instead of one.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::record::KeyId;

/// A value for each key that was seen. Only proven keys are: nobody else can fill it.
#[derive(Debug)]
pub(super) struct Shards<T>(Box<[Mutex<HashMap<KeyId, T>>]>);

/// Enough that cores rarely meet.
const SHARDS: u64 = 64;

impl<T: Default> Shards<T> {
    pub(super) fn new() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }

    /// Does something with the value of a key, new if there was none. Nobody else has it meanwhile, so
    /// it had better be short.
    pub(super) fn with<R>(&self, key: KeyId, work: impl FnOnce(&mut T) -> R) -> R {
        let shard = key.0.unsigned_abs() % SHARDS;
        work(self.0[shard as usize].lock().entry(key).or_default())
    }

    /// Goes through all values, shard by shard, and drops those that are not to be kept.
    pub(super) fn retain(&self, mut keep: impl FnMut(KeyId, &mut T) -> bool) {
        for shard in &self.0 {
            shard.lock().retain(|key, value| keep(*key, value));
        }
    }
}
