//! The fence itself. What it is built of is its parent's choice, so that a test can compile it of other parts.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    snapshot::Snapshot,
    sync::{AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering, PoisonError},
};

/// Which changes have been heard of; shared by the feed and the tiers.
pub struct Fence<K> {
    /// How often something was heard.
    heard: AtomicU64,
    /// Whether changes are being heard of at the moment.
    is_up: AtomicBool,
    bars: Mutex<Bars<K>>,
}

/// When a reading began, counted in what had been heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// What is heard at one time.
#[derive(Debug, Clone)]
pub enum News<K> {
    /// From the log, which then stood at this position.
    Log(Vec<Change<K>>, Arc<Snapshot>),
    /// The log stands at this position, and nobody knows what changed before.
    Gap(Arc<Snapshot>),
    /// These keys changed; there is no log.
    Hint(Vec<K>),
}

/// One entry of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change<K> {
    /// What changed; everything, when absent.
    pub key: Option<K>,
    /// The transaction that changed it.
    pub id: u64,
}

struct Bars<K> {
    by_key: HashMap<K, Bar>,
    all: Bar,
    /// When bars were last taken down.
    pruned_at: Option<Instant>,
    /// Set once the log has been read: until then nobody knows what another process has missed.
    reads_log: bool,
}

/// What a reading has to have seen.
#[derive(Default)]
struct Bar {
    /// Our own must have begun after this was heard.
    number: u64,
    heard_at: Option<Instant>,
    changes: Vec<u64>,
    position: Option<Arc<Snapshot>>,
}

/// How old anything may be while changes are not heard of: the published worst case of a revocation.
pub const WORST_CASE: Duration = Duration::from_secs(30);

/// How long a change is kept in mind: anything read before it is too old to be believed by then.
pub const MEMORY: Duration = Duration::from_secs(60 * 60);

/// How often what is older is dropped.
const PRUNE: Duration = Duration::from_secs(60);

/// Keys kept in mind; beyond, one bar stands for all.
pub const CAPACITY: usize = 200_000;

/// Changes of one key that are told apart; beyond, a reading must be as recent as the last of them.
const CHANGES: usize = 16;

impl<K: Copy + Eq + Hash> Fence<K> {
    /// Nothing heard yet, and nobody listening.
    pub fn new() -> Self {
        let bars = Bars { by_key: HashMap::new(), all: Bar::default(), pruned_at: None, reads_log: false };
        Self { heard: AtomicU64::new(0), is_up: AtomicBool::new(false), bars: Mutex::new(bars) }
    }

    /// To be taken before a reading begins.
    pub fn ticket(&self) -> Ticket {
        Ticket(self.heard.load(Ordering::SeqCst))
    }

    /// Runs `remember`, unless the reading may be older than a change that was heard of meanwhile. Nothing
    /// is heard while it runs.
    pub fn admit(&self, key: K, ticket: Ticket, seen: Option<&Snapshot>, remember: impl FnOnce()) -> bool {
        let bars = self.bars();
        let admitted =
            bars.of(&key).all(|bar| bar.number <= ticket.0 && seen.is_none_or(|seen| bar.lets(seen)));
        if admitted {
            remember();
        }
        admitted
    }

    /// Whether what another process has read may be believed: by what it says to have seen, or, where there is
    /// no log to compare that with, by nothing but its age.
    pub fn believes(&self, key: K, seen: Option<&Snapshot>) -> bool {
        let bars = self.bars();
        match seen {
            Some(seen) => bars.reads_log && bars.of(&key).all(|bar| bar.lets(seen)),
            None => !bars.reads_log && bars.of(&key).all(|bar| bar.number == 0),
        }
    }

    /// Takes note of what changed, and runs `forget` before anything can be remembered again.
    pub fn hear(&self, news: News<K>, now: Instant, forget: impl FnOnce()) {
        let mut bars = self.bars();
        let number = self.heard.fetch_add(1, Ordering::SeqCst) + 1;
        bars.prune(now);
        match news {
            News::Log(changes, position) if bars.by_key.len() + changes.len() <= CAPACITY => {
                for Change { key, id } in changes {
                    bars.bar(key).raise(number, now, id, &position);
                }
            }
            News::Log(_, position) | News::Gap(position) => {
                bars.by_key.clear();
                bars.all = Bar { number, heard_at: Some(now), changes: Vec::new(), position: Some(position) };
            }
            News::Hint(keys) => {
                for key in keys {
                    bars.by_key.insert(key, Bar { number, heard_at: Some(now), ..Bar::default() });
                }
            }
        }
        forget();
    }

    /// Whether changes are heard of within a second.
    pub fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    /// To be told by whoever listens: up is who reads the log, and has read all of it.
    pub fn set_up(&self, up: bool) {
        if up {
            self.bars().reads_log = true;
        }
        self.is_up.store(up, Ordering::Relaxed);
    }

    /// How many keys are kept in mind, and how many changes of this one.
    #[cfg(test)]
    pub(super) fn kept(&self, key: &K) -> (usize, usize) {
        let bars = self.bars();
        (bars.by_key.len(), bars.by_key.get(key).map_or(0, |bar| bar.changes.len()))
    }

    fn bars(&self) -> MutexGuard<'_, Bars<K>> {
        self.bars.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Eq + Hash> Default for Fence<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Eq + Hash> Bars<K> {
    fn of(&self, key: &K) -> impl Iterator<Item = &Bar> {
        self.by_key.get(key).into_iter().chain([&self.all])
    }

    /// Drops what is too old to matter. All of them are looked at, and nothing is admitted meanwhile, so not every time.
    fn prune(&mut self, now: Instant) {
        let is_due = self.pruned_at.is_none_or(|at| now.saturating_duration_since(at) >= PRUNE);
        if is_due {
            self.pruned_at = Some(now);
            self.by_key
                .retain(|_, bar| bar.heard_at.is_some_and(|at| now.saturating_duration_since(at) < MEMORY));
        }
    }

    fn bar(&mut self, key: Option<K>) -> &mut Bar {
        match key {
            Some(key) => self.by_key.entry(key).or_default(),
            None => &mut self.all,
        }
    }
}

impl Bar {
    fn lets(&self, seen: &Snapshot) -> bool {
        self.changes.iter().all(|change| seen.sees(*change))
            && self.position.as_ref().is_none_or(|position| seen.covers(position))
    }

    fn raise(&mut self, number: u64, now: Instant, change: u64, position: &Arc<Snapshot>) {
        self.number = number;
        self.heard_at = Some(now);
        self.changes.push(change);
        if self.changes.len() > CHANGES {
            self.changes.clear();
            self.position = Some(Arc::clone(position));
        }
    }
}
