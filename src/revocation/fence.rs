//! The fence between reads and changes: a record that was read before a change is not cached after it.
//!
//! A read takes a [`Generation`] before it starts. When a change is applied, the cached records are dropped and the
//! prefix gets a newer number, in one step. A read that ends later has a generation that is too old, so it is not
//! cached.
//!
//! The parent module chooses the lock types, so that a test can compile the fence with other lock types.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    log_position::LogPosition,
    sync::{AtomicU64, Mutex, MutexGuard, Ordering},
};

/// The changes that were applied. The feed and the cache tiers share it.
pub struct Fence<K> {
    /// How many times changes were applied.
    applied: AtomicU64,
    /// The time until which the feed is up, in nanoseconds after `started`.
    up_until: AtomicU64,
    started: Instant,
    invalidations: Mutex<Invalidations<K>>,
}

/// The start of a read, as the number of times that changes had been applied by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation(u64);

/// Changes that are applied together.
#[derive(Debug, Clone)]
pub enum Changes<K> {
    /// Changes from the log, read at this position.
    Logged(Vec<Change<K>>, Arc<LogPosition>),
    /// Anything may have changed before this position.
    Everything(Arc<LogPosition>),
    /// Anything may have changed, and there is no log to compare reads with.
    EverythingUnlogged,
    /// These keys may have changed; there is no log.
    Hints(Vec<K>),
}

/// One entry of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change<K> {
    /// The key that changed; `None` stands for every key.
    pub key: Option<K>,
    /// The number of the change.
    pub id: u64,
}

struct Invalidations<K> {
    by_key: HashMap<K, Invalidation>,
    all: Invalidation,
    pruned_at: Option<Instant>,
    /// The epoch of the log; `None` while there is no log to compare reads with.
    epoch: Option<u64>,
}

/// The changes that a read must have seen before its record may be cached.
#[derive(Default)]
struct Invalidation {
    /// A read of this process must have started after changes had been applied this many times.
    number: u64,
    applied_at: Option<Instant>,
    changes: Vec<u64>,
    position: Option<Arc<LogPosition>>,
}

/// Maximum age of a cached record that is used while the feed is not up: the published worst case of a revocation.
pub const WORST_CASE: Duration = Duration::from_secs(30);

/// How long an invalidation is kept. A record that was read before it is by then too old to be used.
pub const MEMORY: Duration = Duration::from_secs(60 * 60);

/// Interval between removals of old invalidations.
const PRUNE: Duration = Duration::from_secs(60);

/// Maximum number of keys with an invalidation of their own. Above it, one invalidation covers all keys.
pub const CAPACITY: usize = 200_000;

/// Maximum number of changes kept per key. Above it, a read must be as recent as the newest of them.
const CHANGES: usize = 16;

impl<K: Copy + Eq + Hash> Fence<K> {
    /// A fence without changes, and not up. `started` is the start of its clock: now or earlier.
    pub fn new(started: Instant) -> Self {
        let invalidations = Invalidations {
            by_key: HashMap::new(),
            all: Invalidation::default(),
            pruned_at: None,
            epoch: None,
        };
        Self {
            applied: AtomicU64::new(0),
            up_until: AtomicU64::new(0),
            started,
            invalidations: Mutex::new(invalidations),
        }
    }

    /// The current generation. Take it before the read starts.
    pub fn generation(&self) -> Generation {
        Generation(self.applied.load(Ordering::SeqCst))
    }

    /// Runs `remember`, unless a change of this key or of all keys was applied after `generation`. No change is applied
    /// while it runs.
    pub fn admit(&self, key: K, generation: Generation, remember: impl FnOnce()) -> bool {
        let invalidations = self.invalidations();
        let admitted = invalidations.of(&key).all(|invalidation| invalidation.number <= generation.0);
        if admitted {
            remember();
        }
        admitted
    }

    /// The same for a record from the database. Where there is a log, the read must state which changes it had seen, in
    /// the epoch of that log. Otherwise the record is not cached: a connection may lead to a standby, or to the server
    /// before a failover.
    pub fn admit_read(
        &self,
        key: K,
        generation: Generation,
        seen: Option<&LogPosition>,
        remember: impl FnOnce(),
    ) -> bool {
        let invalidations = self.invalidations();
        let is_current = match (seen, invalidations.epoch) {
            (Some(seen), epoch) => {
                epoch.is_none_or(|epoch| seen.epoch() == epoch)
                    && invalidations.of(&key).all(|invalidation| invalidation.allows(seen))
            }
            (None, epoch) => epoch.is_none(),
        };
        let admitted =
            is_current && invalidations.of(&key).all(|invalidation| invalidation.number <= generation.0);
        if admitted {
            remember();
        }
        admitted
    }

    /// Whether to trust a record that another instance read: by the changes that its read had seen. If neither that
    /// read nor this fence has a log, the record is trusted while no change of its key was applied; only its age limits
    /// it then.
    pub fn believes(&self, key: K, seen: Option<&LogPosition>) -> bool {
        let invalidations = self.invalidations();
        match (seen, invalidations.epoch) {
            (Some(seen), Some(epoch)) => {
                seen.epoch() == epoch && invalidations.of(&key).all(|invalidation| invalidation.allows(seen))
            }
            (None, None) => invalidations.of(&key).all(|invalidation| invalidation.number == 0),
            _ => false,
        }
    }

    /// Applies changes, and runs `forget` before any record can be cached again.
    pub fn apply(&self, changes: Changes<K>, now: Instant, forget: impl FnOnce()) {
        let mut invalidations = self.invalidations();
        let number = self.applied.fetch_add(1, Ordering::SeqCst) + 1;
        invalidations.prune(now);
        match changes {
            Changes::Logged(changes, position) if invalidations.by_key.len() + changes.len() <= CAPACITY => {
                for Change { key, id } in changes {
                    invalidations.entry(key).raise(number, now, id, &position);
                }
            }
            Changes::Logged(_, position) | Changes::Everything(position) => {
                invalidations.everything(number, now, Some(position));
            }
            Changes::EverythingUnlogged => invalidations.everything(number, now, None),
            Changes::Hints(keys) => {
                for key in keys {
                    let invalidation =
                        Invalidation { number, applied_at: Some(now), ..Invalidation::default() };
                    invalidations.by_key.insert(key, invalidation);
                }
            }
        }
        forget();
    }

    /// Whether changes are applied within one second of their commit. This expires without an update, so a feed that
    /// hangs is not up.
    pub fn is_up(&self, now: Instant) -> bool {
        self.nanos(now) < self.up_until.load(Ordering::Relaxed)
    }

    /// The feed sets this after each read: the time until which it is up, and the epoch of the log that it reads.
    pub fn set_state(&self, up_until: Option<Instant>, epoch: Option<u64>) {
        self.invalidations().epoch = epoch;
        self.up_until.store(up_until.map_or(0, |until| self.nanos(until)), Ordering::Relaxed);
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_nanos()).unwrap_or(u64::MAX)
    }

    /// The number of keys with invalidations, and the number of changes kept for this key.
    #[cfg(test)]
    pub(super) fn kept(&self, key: &K) -> (usize, usize) {
        let invalidations = self.invalidations();
        let changes = invalidations.by_key.get(key).map_or(0, |invalidation| invalidation.changes.len());
        (invalidations.by_key.len(), changes)
    }

    fn invalidations(&self) -> MutexGuard<'_, Invalidations<K>> {
        self.invalidations.lock()
    }
}

impl<K: Eq + Hash> Invalidations<K> {
    fn of(&self, key: &K) -> impl Iterator<Item = &Invalidation> {
        self.by_key.get(key).into_iter().chain([&self.all])
    }

    /// Drops invalidations that are too old to matter. It checks all of them under the lock, so it does not run at
    /// every change.
    fn prune(&mut self, now: Instant) {
        let is_due = self.pruned_at.is_none_or(|at| now.saturating_duration_since(at) >= PRUNE);
        if is_due {
            self.pruned_at = Some(now);
            self.by_key.retain(|_, invalidation| {
                invalidation.applied_at.is_some_and(|at| now.saturating_duration_since(at) < MEMORY)
            });
        }
    }

    fn entry(&mut self, key: Option<K>) -> &mut Invalidation {
        match key {
            Some(key) => self.by_key.entry(key).or_default(),
            None => &mut self.all,
        }
    }

    fn everything(&mut self, number: u64, now: Instant, position: Option<Arc<LogPosition>>) {
        self.by_key.clear();
        self.epoch = position.as_ref().map(|position| position.epoch());
        self.all = Invalidation { number, applied_at: Some(now), changes: Vec::new(), position };
    }
}

impl Invalidation {
    /// Whether a read in the log's epoch has seen all changes that this invalidation requires. Their numbers stay valid
    /// when an epoch ends without a gap: the epoch of a SQLite file ends with each entry.
    fn allows(&self, seen: &LogPosition) -> bool {
        self.changes.iter().all(|change| seen.snapshot().sees(*change))
            && self.position.as_ref().is_none_or(|position| seen.snapshot().covers(position.snapshot()))
    }

    fn raise(&mut self, number: u64, now: Instant, change: u64, position: &Arc<LogPosition>) {
        self.number = number;
        self.applied_at = Some(now);
        self.changes.push(change);
        if self.changes.len() > CHANGES {
            self.changes.clear();
            self.position = Some(Arc::clone(position));
        }
    }
}
