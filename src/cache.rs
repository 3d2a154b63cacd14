//! Caches that grow without long pauses.

use std::hash::Hash;

use quick_cache::{DefaultHashBuilder, OptionsBuilder, UnitWeighter, sync::DefaultLifecycle};

/// A cache of entries by key.
pub(crate) type Cache<K, V> = quick_cache::sync::Cache<K, V>;

/// Number of parts of a cache. Each part has its own lock. When a part grows, it moves all its entries, and readers of
/// these entries wait. The library's default on two cores is eight parts. With a million entries in eight parts, the
/// wait is some 20 ms.
const PARTS: usize = 64;

/// An empty cache with this capacity.
pub(crate) fn cache<K: Eq + Hash, V: Clone>(capacity: usize) -> Cache<K, V> {
    let mut options = OptionsBuilder::new();
    options.shards(PARTS).estimated_items_capacity(capacity).weight_capacity(capacity as u64);
    let options = options.build().expect("both capacities are set");
    Cache::with_options(options, UnitWeighter, DefaultHashBuilder::default(), DefaultLifecycle::default())
}
