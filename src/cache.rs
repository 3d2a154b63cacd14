//! Caches that grow without holding anybody up.

use std::hash::Hash;

use quick_cache::{DefaultHashBuilder, OptionsBuilder, UnitWeighter, sync::DefaultLifecycle};

/// A cache of entries by key.
pub(crate) type Cache<K, V> = quick_cache::sync::Cache<K, V>;

/// Parts of a cache, each under a lock of its own. A part that grows moves all that it holds, and whoever asks for
/// one of these waits: with a million entries, some 20 ms were it one of eight, as the library would have on two cores.
const PARTS: usize = 64;

/// An empty cache for so many entries.
pub(crate) fn cache<K: Eq + Hash, V: Clone>(capacity: usize) -> Cache<K, V> {
    let mut options = OptionsBuilder::new();
    options.shards(PARTS).estimated_items_capacity(capacity).weight_capacity(capacity as u64);
    let options = options.build().expect("both capacities are set");
    Cache::with_options(options, UnitWeighter, DefaultHashBuilder::default(), DefaultLifecycle::default())
}
