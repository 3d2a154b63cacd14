//! Watches all instances of a world without pause, and judges them by the promise.

use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::RwLock;

use super::model::Facts;
use crate::harness::promise::{Instance, judge, stalls_since};

/// What the watch and the world share.
pub struct Watch {
    pub instances: RwLock<Vec<Instance>>,
    keys: Mutex<Vec<Key>>,
    /// Odd while the world changes something: answers of that time say nothing.
    epoch: AtomicU64,
    /// When instances could not reach the database.
    outages: Mutex<Vec<(Instant, Instant)>>,
    /// Since when nothing has happened that may bring the feed down; none while it may be down.
    quiet_since: Mutex<Option<Instant>>,
    up: Mutex<UpTime>,
    failure: Mutex<Option<String>>,
    journal: Mutex<VecDeque<String>>,
    began: Instant,
}

/// A key, and what the tables say of it.
#[derive(Debug, Clone)]
pub struct Key {
    pub credential: String,
    pub hash: String,
    /// When it was denied and by what; none while it may be allowed.
    pub denied: Option<(Instant, String)>,
    /// Which instances have denied it since, a bit each.
    denied_by: u32,
}

/// Readings of `up` in times in which the feed has to be up.
#[derive(Debug, Clone, Copy, Default)]
pub struct UpTime {
    pub up: u32,
    pub down: u32,
}

/// How long after an event that mends itself, or after a migration, the feed may still be down.
pub const GRACE: Duration = Duration::from_secs(12);
const PAUSE: Duration = Duration::from_millis(50);

impl Watch {
    pub fn new() -> Self {
        Self {
            instances: RwLock::default(),
            keys: Mutex::default(),
            epoch: AtomicU64::new(0),
            outages: Mutex::default(),
            quiet_since: Mutex::default(),
            up: Mutex::default(),
            failure: Mutex::default(),
            journal: Mutex::default(),
            began: Instant::now(),
        }
    }

    /// Notes what was done, for the message of a failure.
    pub fn note(&self, what: &str) {
        let at = self.began.elapsed().as_secs_f32();
        let what = self
            .keys()
            .iter()
            .fold(what.to_owned(), |what, key| what.replace(&key.hash, &key.credential[..8]));
        let words: Vec<_> = what.split_whitespace().collect();
        self.journal.lock().unwrap().push_back(format!("{at:6.2} s  {}", words.join(" ")));
    }

    /// What was noted, and the events of it first.
    pub fn journal(&self) -> String {
        let journal = self.journal.lock().unwrap();
        let events = journal.iter().filter_map(|line| line.split_once("event ")).map(|(_, event)| event);
        let events = events.collect::<Vec<_>>().join(", ");
        let lines: String = journal.iter().map(|line| format!("    {line}\n")).collect();
        format!("  events: {events}\n{lines}")
    }

    pub fn fail(&self, problem: String) {
        self.failure.lock().unwrap().get_or_insert(problem);
    }

    pub fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap().clone()
    }

    pub fn up_time(&self) -> UpTime {
        *self.up.lock().unwrap()
    }

    /// The feed has to be up from then on; never, when `None`.
    pub fn quiet_from(&self, when: Option<Instant>) {
        *self.quiet_since.lock().unwrap() = when;
    }

    pub fn is_quiet(&self) -> bool {
        self.quiet_since.lock().unwrap().is_some_and(|since| since <= Instant::now())
    }

    pub fn add_key(&self, credential: String, hash: String) {
        self.keys.lock().unwrap().push(Key { credential, hash, denied: None, denied_by: 0 });
    }

    pub fn keys(&self) -> Vec<Key> {
        self.keys.lock().unwrap().clone()
    }

    /// Credentials and hashes of those that may be allowed.
    pub fn good(&self) -> Vec<Key> {
        self.keys().into_iter().filter(|key| key.denied.is_none()).collect()
    }

    /// Whether a key is denied by the tables, and not yet by every instance.
    pub async fn is_pending(&self) -> bool {
        let all = (1 << self.instances.read().await.len()) - 1;
        self.keys.lock().unwrap().iter().any(|key| key.denied.is_some() && key.denied_by != all)
    }

    pub fn begin(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes over what the tables say since `committed`.
    pub fn end(&self, facts: &Facts, committed: Instant, what: &str) {
        for key in self.keys.lock().unwrap().iter_mut() {
            match (facts.allows(&key.credential, &key.hash), &key.denied) {
                (true, Some(_)) => (key.denied, key.denied_by) = (None, 0),
                (false, None) => {
                    (key.denied, key.denied_by) = (Some((committed, what.to_owned())), 0);
                }
                _ => {}
            }
        }
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    pub fn outage(&self, since: Instant) {
        self.outages.lock().unwrap().push((since, Instant::now()));
    }

    fn outages_since(&self, since: Instant) -> Duration {
        let outages = self.outages.lock().unwrap();
        outages.iter().map(|(from, to)| to.saturating_duration_since((*from).max(since))).sum()
    }

    /// Watches until a failure, or for ever.
    pub async fn run(&self) {
        for round in 0_u32.. {
            let instances = self.instances.read().await;
            for (at, instance) in instances.iter().enumerate() {
                if let Err(problem) = self.look_at(at, instance, round).await {
                    self.fail(problem);
                    return;
                }
            }
            drop(instances);
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn look_at(&self, at: usize, instance: &Instance, round: u32) -> Result<(), String> {
        let epoch = self.epoch.load(Ordering::SeqCst);
        let began = Instant::now();
        let up = instance.is_up().await;
        self.count(up, stalls_since(began) + began.elapsed());
        let mut allowed = Vec::new();
        for key in self.keys() {
            let Some((committed, _)) = key.denied else {
                // Now and then, so that it stays in memory.
                if round.is_multiple_of(6) {
                    instance.status(&key.credential).await;
                }
                continue;
            };
            let asked = Instant::now();
            match instance.status(&key.credential).await {
                200 => allowed.push((key, asked)),
                503 => {}
                _ => self.denied(at, &key, committed),
            }
        }
        let up = up && (allowed.is_empty() || instance.is_up().await);
        if !epoch.is_multiple_of(2) || self.epoch.load(Ordering::SeqCst) != epoch {
            return Ok(());
        }
        for (key, asked) in allowed {
            let Some((committed, what)) = &key.denied else { continue };
            let mut stalled = stalls_since(*committed);
            if !up {
                stalled += self.outages_since(*committed);
            }
            judge(asked.saturating_duration_since(*committed), stalled, up).map_err(|problem| {
                format!("instance {at}, {}: {problem}, after: {what}", &key.credential[..8])
            })?;
        }
        Ok(())
    }

    fn denied(&self, at: usize, asked: &Key, committed: Instant) {
        let mut keys = self.keys.lock().unwrap();
        let same = keys.iter_mut().find(|key| key.credential == asked.credential);
        if let Some(key) =
            same.filter(|key| key.denied.as_ref().is_some_and(|(since, _)| *since == committed))
        {
            key.denied_by |= 1 << at;
        }
    }

    fn count(&self, up: bool, took: Duration) {
        // A reading that took long says more about the machine.
        if !self.is_quiet() || took > Duration::from_millis(300) {
            return;
        }
        let mut counts = self.up.lock().unwrap();
        if up {
            counts.up += 1;
        } else {
            counts.down += 1;
        }
    }
}
