//! The fence between reads and changes: what was read before a change is not cached after it.
//!
//! A read takes a [`Generation`] before it starts. When a change is applied, the cached records are dropped and the
//! prefix gets a newer number, in one step; a read that ends later has too old a generation to be cached.
//!
//! The types that it locks with are its parent's choice, so that a test can compile it with others.

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

/// The changes that were applied; shared by the feed and the cache tiers.
pub struct Fence<K> {
    /// How often changes were applied.
    applied: AtomicU64,
    /// Until when the feed is up, in nanoseconds after `started`.
    up_until: AtomicU64,
    started: Instant,
    invalidations: Mutex<Invalidations<K>>,
}

/// When a read started: how often changes had been applied by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation(u64);

/// Changes that are applied together.
#[derive(Debug, Clone)]
pub enum Changes<K> {
    /// From the log, read at this position.
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
    /// The key that changed; every key, when absent.
    pub key: Option<K>,
    /// The number of the change.
    pub id: u64,
}

struct Invalidations<K> {
    by_key: HashMap<K, Invalidation>,
    all: Invalidation,
    pruned_at: Option<Instant>,
    /// The epoch of the log; none while there is no log to compare reads with.
    epoch: Option<u64>,
}

/// What a read must have seen to be believed.
#[derive(Default)]
struct Invalidation {
    /// A read of this process must have started after this many changes were applied.
    number: u64,
    applied_at: Option<Instant>,
    changes: Vec<u64>,
    position: Option<Arc<LogPosition>>,
}

/// Maximum age of what is believed while the feed is not up: the published worst case of a revocation.
pub const WORST_CASE: Duration = Duration::from_secs(30);

/// How long an invalidation is kept. Anything read before it is too old to be believed by then.
pub const MEMORY: Duration = Duration::from_secs(60 * 60);

/// How often older invalidations are dropped.
const PRUNE: Duration = Duration::from_secs(60);

/// Maximum number of keys with invalidations of their own. Past it, one invalidation stands for all keys.
pub const CAPACITY: usize = 200_000;

/// Maximum number of changes kept for a key. Past it, a read must be as recent as the last of them.
const CHANGES: usize = 16;

impl<K: Copy + Eq + Hash> Fence<K> {
    /// Nothing applied yet, and not up. `started` is the start of its clock: now or earlier.
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

    /// To be taken before a read starts.
    pub fn generation(&self) -> Generation {
        Generation(self.applied.load(Ordering::SeqCst))
    }

    /// Runs `remember`, unless a change was applied since `generation`. No change is applied while it runs.
    pub fn admit(&self, key: K, generation: Generation, remember: impl FnOnce()) -> bool {
        let invalidations = self.invalidations();
        let admitted = invalidations.of(&key).all(|invalidation| invalidation.number <= generation.0);
        if admitted {
            remember();
        }
        admitted
    }

    /// The same for a record that the database returned. Where there is a log, the read must say which changes it had
    /// seen, in the epoch of that log: a connection may lead to a standby, or to the server of before a failover.
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

    /// Whether a read of another process may be believed: by the changes that it had seen, or, where there is no log
    /// to compare with, by its age alone.
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

    /// Applies changes, and runs `forget` before anything can be cached again.
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

    /// Whether changes are applied within a second of their commit. It ends by itself: a feed that is stuck is not up.
    pub fn is_up(&self, now: Instant) -> bool {
        self.nanos(now) < self.up_until.load(Ordering::Relaxed)
    }

    /// Set by the feed after each read: until when it is up, and the epoch of the log that it reads.
    pub fn set_state(&self, up_until: Option<Instant>, epoch: Option<u64>) {
        self.invalidations().epoch = epoch;
        self.up_until.store(up_until.map_or(0, |until| self.nanos(until)), Ordering::Relaxed);
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_nanos()).unwrap_or(u64::MAX)
    }

    /// How many keys have invalidations, and how many changes this one has.
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

    /// Drops what is too old to matter. It looks at each of them under the lock, so it does not run every time.
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
    /// Whether a read of the log's epoch has seen what it must. The numbers kept here continue through an epoch that
    /// ends without a gap: that of a SQLite file ends with each entry.
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
