//! Keeps what was read before a change from being remembered after it.
//!
//! A reading takes a [`Ticket`] before it asks. When a change is heard of, what is remembered is dropped and
//! the prefix is given a newer number, in one step; when the reading lands, its ticket is too old. What another
//! process has read has no ticket of ours, but says which changes it has [seen](Snapshot).

use std::{
    collections::HashMap,
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

mod snapshot;
mod sync;

pub use snapshot::{NoSnapshot, Snapshot};
use sync::{AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering, PoisonError};

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

/// Keys kept in mind; beyond, one bar stands for all.
const CAPACITY: usize = 200_000;

/// Changes of one key that are told apart; beyond, a reading must be as recent as the last of them.
const CHANGES: usize = 16;

impl<K: Copy + Eq + Hash> Fence<K> {
    /// Nothing heard yet, and nobody listening.
    pub fn new() -> Self {
        let bars = Bars { by_key: HashMap::new(), all: Bar::default(), reads_log: false };
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
        bars.by_key
            .retain(|_, bar| bar.heard_at.is_some_and(|at| now.saturating_duration_since(at) < MEMORY));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Arc<Snapshot> {
        Arc::new(text.parse().expect(text))
    }

    fn log(changes: &[(Option<u8>, u64)], position: &str) -> News<u8> {
        News::Log(changes.iter().map(|(key, id)| Change { key: *key, id: *id }).collect(), snapshot(position))
    }

    fn admits(fence: &Fence<u8>, key: u8, ticket: Ticket, seen: Option<&str>) -> bool {
        let mut ran = false;
        let seen = seen.map(snapshot);
        let admitted = fence.admit(key, ticket, seen.as_deref(), || ran = true);
        assert_eq!(admitted, ran);
        admitted
    }

    #[test]
    fn reading_that_began_before_a_change_was_heard_of_is_not_remembered() {
        let fence = Fence::new();
        let before = fence.ticket();
        fence.hear(log(&[(Some(1), 10)], "11:11:"), Instant::now(), || ());
        assert!(!admits(&fence, 1, before, None));
        assert!(admits(&fence, 2, before, None), "another key");
        assert!(admits(&fence, 1, fence.ticket(), None));
        fence.hear(log(&[(None, 11)], "12:12:"), Instant::now(), || ());
        assert!(!admits(&fence, 2, before, None), "everything changed");
    }

    #[test]
    fn reading_of_a_server_that_lags_is_not_remembered() {
        let fence = Fence::new();
        fence.hear(log(&[(Some(1), 10)], "11:11:"), Instant::now(), || ());
        assert!(!admits(&fence, 1, fence.ticket(), Some("10:10:")));
        assert!(admits(&fence, 1, fence.ticket(), Some("11:11:")));
    }

    #[test]
    fn another_process_is_believed_by_what_it_has_seen() {
        let fence = Fence::new();
        assert!(!fence.believes(1, Some(&snapshot("90:90:"))), "before the log has been read");
        fence.hear(log(&[(Some(1), 10), (Some(1), 14)], "11:20:15"), Instant::now(), || ());
        fence.set_up(true);
        for (seen, believed) in
            [("10:20:10", false), ("10:14:", false), ("11:20:14", false), ("11:15:", true)]
        {
            assert_eq!(fence.believes(1, Some(&snapshot(seen))), believed, "{seen}");
        }
        assert!(fence.believes(2, Some(&snapshot("1:1:"))), "nothing is known against it");
        assert!(!fence.believes(2, None), "where there is a log, it would say");
    }

    #[test]
    fn after_a_gap_only_what_was_read_since_is_believed() {
        let fence = Fence::<u8>::new();
        fence.hear(News::Gap(snapshot("10:20:10")), Instant::now(), || ());
        fence.set_up(true);
        assert!(!fence.believes(1, Some(&snapshot("9:20:9,10"))));
        assert!(fence.believes(1, Some(&snapshot("10:20:10"))));
    }

    #[test]
    fn without_a_log_a_changed_key_is_not_believed() {
        let fence = Fence::<u8>::new();
        assert!(fence.believes(1, None));
        fence.hear(News::Hint(vec![1]), Instant::now(), || ());
        assert_eq!((fence.believes(1, None), fence.believes(2, None)), (false, true));
    }

    #[test]
    fn many_changes_cost_bounded_room_and_lose_nothing() {
        let fence = Fence::<u8>::new();
        for id in 0..100 {
            fence.hear(log(&[(Some(1), id)], &format!("{0}:{0}:", id + 1)), Instant::now(), || ());
        }
        fence.set_up(true);
        assert!(fence.bars().by_key[&1].changes.len() <= CHANGES);
        assert!(!fence.believes(1, Some(&snapshot("99:99:"))));
        assert!(fence.believes(1, Some(&snapshot("100:100:"))));
    }

    #[test]
    fn changes_are_forgotten_in_time() {
        let fence = Fence::<u8>::new();
        let now = Instant::now();
        fence.hear(log(&[(Some(1), 10)], "11:11:"), now, || ());
        fence.hear(log(&[(Some(2), 11)], "12:12:"), now + MEMORY, || ());
        assert_eq!(fence.bars().by_key.len(), 1);
    }
}
