//! The states of all dependencies, and the lines that the log has of them.
//!
//! A dependency fails in two ways. An attempt may fail as a whole: the state holds until an attempt succeeds. Or some
//! calls fail while others succeed, as in a flood: the state holds until there was no such call for [`QUIET`].

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tracing::{info, warn};

use super::{Cause, Dependency, Fault};
use crate::clock;

/// The states of all dependencies.
#[derive(Default)]
pub struct States(Mutex<[Slot; Dependency::ALL.len()]>);

/// Reports the outcome of calls to one dependency. Cheap to clone.
#[derive(Clone)]
pub struct Reporter {
    states: Arc<States>,
    dependency: Dependency,
}

/// The state of one dependency, for `/readyz`, `/stats` and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DependencyState {
    /// The dependency.
    pub dependency: Dependency,
    /// Whether it works.
    pub state: State,
    /// Why it does not. Empty while it works.
    pub faults: Vec<Fault>,
    /// The calls that failed while others succeeded, in the present episode.
    pub failed_calls: u64,
}

/// Whether a dependency works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Attempts succeed.
    Up,
    /// Some calls fail.
    Degraded,
    /// Attempts fail.
    Down,
}

#[derive(Default)]
struct Slot {
    /// Whether the last attempt succeeded. `None`: there was none.
    works: Option<bool>,
    faults: Vec<Fault>,
    episode: Option<Episode>,
    log: Log,
}

/// Calls that failed while others succeeded.
struct Episode {
    fault: Fault,
    since: Instant,
    last: Instant,
    calls: u64,
}

/// What the log says of a dependency.
#[derive(Default)]
struct Log {
    /// The faults that it has, since the dependency last worked: code and text.
    faults: Vec<(&'static str, String)>,
    /// Whether it says that the dependency works.
    works: Option<bool>,
    /// When the last lines were written.
    lines: VecDeque<Instant>,
    /// The last episode that ended: its number of calls and its duration.
    ended: Option<(u64, Duration)>,
}

/// A line of the log.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Lost(Fault, u64),
    Back(Option<(u64, Duration)>),
    First,
}

/// How long no call may fail before a state of failed calls ends.
const QUIET: Duration = Duration::from_secs(10);

/// Number of texts of one cause that are logged at once: a text may change with every attempt.
const TEXTS: usize = 3;

/// Maximum number of lines of one dependency in one [`MINUTE`]. The rest waits: when the minute is over, the log gets
/// the state of that time.
const LINES: usize = 6;
const MINUTE: Duration = Duration::from_secs(60);

impl States {
    /// A reporter of one dependency.
    pub fn reporter(self: &Arc<Self>, dependency: Dependency) -> Reporter {
        Reporter { states: Arc::clone(self), dependency }
    }

    /// Ends the states of failed calls that are over, and writes the lines that had to wait. To be called each second.
    pub fn tick(&self) {
        for dependency in Dependency::ALL {
            self.change(dependency, |_, _| ());
        }
    }

    /// The state of each dependency that was tried.
    pub fn snapshot(&self) -> Vec<DependencyState> {
        let slots = self.0.lock();
        let states = Dependency::ALL.iter().zip(slots.iter());
        states.filter_map(|(dependency, slot)| slot.state(*dependency)).collect()
    }

    fn change(&self, dependency: Dependency, change: impl FnOnce(&mut Slot, Instant)) {
        let now = clock::monotonic();
        let entries = {
            let slot = &mut self.0.lock()[dependency as usize];
            change(slot, now);
            slot.end_episode(now);
            slot.entries(now)
        };
        entries.into_iter().for_each(|entry| write(dependency, entry));
    }
}

impl Reporter {
    /// An attempt succeeded.
    pub fn works(&self) {
        self.states.change(self.dependency, |slot, _| slot.set(true, Vec::new()));
    }

    /// An attempt failed.
    pub fn fails(&self, cause: Cause, problem: impl Into<String>) {
        self.fails_by(vec![self.fault(cause, problem)]);
    }

    /// An attempt failed for these reasons.
    pub fn fails_by(&self, faults: Vec<Fault>) {
        self.states.change(self.dependency, |slot, _| slot.set(false, faults));
    }

    /// Some calls failed, and others may succeed.
    pub fn fails_for(&self, calls: u64, cause: Cause, problem: impl Into<String>) {
        let fault = self.fault(cause, problem);
        self.states.change(self.dependency, |slot, now| slot.add(fault, calls, now));
    }

    fn fault(&self, cause: Cause, problem: impl Into<String>) -> Fault {
        Fault { cause: cause.name(), problem: problem.into(), fix: cause.fix(self.dependency) }
    }
}

impl Slot {
    fn set(&mut self, works: bool, faults: Vec<Fault>) {
        self.works = Some(works);
        self.faults = faults;
    }

    fn add(&mut self, fault: Fault, calls: u64, now: Instant) {
        match &mut self.episode {
            Some(episode) => {
                (episode.last, episode.calls) = (now, episode.calls + calls);
                episode.fault = fault;
            }
            None => self.episode = Some(Episode { fault, since: now, last: now, calls }),
        }
    }

    fn end_episode(&mut self, now: Instant) {
        let is_over = |episode: &mut Episode| now.saturating_duration_since(episode.last) >= QUIET;
        if let Some(over) = self.episode.take_if(is_over) {
            self.works.get_or_insert(true);
            self.log.ended = Some((over.calls, over.last.saturating_duration_since(over.since)));
        }
    }

    /// The lines that the log lacks.
    fn entries(&mut self, now: Instant) -> Vec<Entry> {
        let log = &mut self.log;
        while log.lines.front().is_some_and(|at| now.saturating_duration_since(*at) >= MINUTE) {
            log.lines.pop_front();
        }
        let mut entries = Vec::new();
        let episode = self.episode.iter().map(|episode| (&episode.fault, episode.calls));
        let present: Vec<_> = self.faults.iter().map(|fault| (fault, 0)).chain(episode).collect();
        for (fault, calls) in &present {
            let of_cause = log.faults.iter().filter(|(cause, _)| *cause == fault.cause);
            let is_logged =
                log.faults.iter().any(|(cause, text)| (*cause, text) == (fault.cause, &fault.problem));
            // The text of failed calls has numbers and networks: one line tells of all of them.
            let texts = if *calls > 0 { 1 } else { TEXTS };
            if is_logged || of_cause.count() >= texts || log.lines.len() >= LINES {
                continue;
            }
            log.faults.push((fault.cause, fault.problem.clone()));
            log.works = Some(false);
            log.lines.push_back(now);
            entries.push(Entry::Lost((*fault).clone(), *calls));
        }
        let works = present.is_empty() && self.works == Some(true);
        if works && log.works != Some(true) && log.lines.len() < LINES {
            let is_first = log.works.is_none();
            log.faults.clear();
            log.works = Some(true);
            log.lines.push_back(now);
            entries.push(if is_first { Entry::First } else { Entry::Back(log.ended.take()) });
        }
        entries
    }

    fn state(&self, dependency: Dependency) -> Option<DependencyState> {
        let state = match (self.works, &self.episode) {
            (Some(false), _) => State::Down,
            (_, Some(_)) => State::Degraded,
            (Some(true), None) => State::Up,
            (None, None) => return None,
        };
        let episode = self.episode.iter().map(|episode| &episode.fault);
        let faults = self.faults.iter().chain(episode).cloned().collect();
        let failed_calls = self.episode.as_ref().map_or(0, |episode| episode.calls);
        Some(DependencyState { dependency, state, faults, failed_calls })
    }
}

fn write(dependency: Dependency, entry: Entry) {
    let name = dependency.name();
    match entry {
        Entry::Lost(Fault { cause, problem, fix }, calls) => {
            let calls = (calls > 0).then_some(calls);
            warn!(dependency = name, cause, problem, fix, calls, "{}", dependency.consequence());
        }
        Entry::Back(Some((failed_calls, lasted))) => {
            let lasted = humantime::format_duration(Duration::from_secs(lasted.as_secs())).to_string();
            info!(dependency = name, failed_calls, lasted, "{}", dependency.promise());
        }
        Entry::Back(None) => info!(dependency = name, "it works again: {}", dependency.promise()),
        Entry::First => info!(dependency = name, "{}", dependency.promise()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(cause: Cause, problem: &str) -> Fault {
        Fault { cause: cause.name(), problem: problem.into(), fix: String::new() }
    }

    struct Bench {
        slot: Slot,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            Self { slot: Slot::default(), now: Instant::now() }
        }

        /// The lines after this change, this many seconds later.
        fn after(&mut self, seconds: u64, change: impl FnOnce(&mut Slot, Instant)) -> Vec<Entry> {
            self.now += Duration::from_secs(seconds);
            change(&mut self.slot, self.now);
            self.slot.end_episode(self.now);
            self.slot.entries(self.now)
        }
    }

    #[test]
    fn loss_and_return_are_logged_once() {
        let (mut bench, refused) = (Bench::new(), fault(Cause::Unreachable, "refused"));
        let works = |slot: &mut Slot, _| slot.set(true, Vec::new());
        assert_eq!(bench.after(0, works), [Entry::First]);
        assert_eq!(bench.after(1, works), []);
        let fails = |slot: &mut Slot, _| slot.set(false, vec![refused.clone()]);
        assert_eq!(bench.after(1, fails), [Entry::Lost(refused.clone(), 0)]);
        assert_eq!(bench.after(500, fails), []);
        assert_eq!(bench.after(1, works), [Entry::Back(None)]);
        assert_eq!(bench.after(1, fails).len(), 1);
    }

    #[test]
    fn each_cause_is_logged_and_a_text_that_changes_all_the_time_is_not() {
        let mut bench = Bench::new();
        let mut lost = 0;
        for second in 0..100 {
            let now = fault(Cause::Unreachable, &format!("attempt {second}"));
            lost += bench.after(1, |slot, _| slot.set(false, vec![now])).len();
        }
        assert_eq!(lost, TEXTS);
        let other = fault(Cause::LoginRefused, "wrong password");
        assert_eq!(bench.after(1, |slot, _| slot.set(false, vec![other.clone()])), [Entry::Lost(other, 0)]);
    }

    #[test]
    fn a_dependency_that_comes_and_goes_is_logged_a_few_times_a_minute_and_the_last_line_is_true() {
        let (mut bench, mut lines) = (Bench::new(), Vec::new());
        for second in 0..50 {
            let faults = vec![fault(Cause::NoAnswer, "late")];
            lines.extend(bench.after(1, |slot, _| {
                slot.set(second % 2 == 0, if second % 2 == 0 { vec![] } else { faults })
            }));
        }
        assert_eq!(lines.len(), LINES);
        bench.after(0, |slot, _| slot.set(true, Vec::new()));
        (0..61).for_each(|_| lines.extend(bench.after(1, |_, _| ())));
        assert!(matches!(lines.last(), Some(Entry::Back(_))), "{lines:?}");
        assert_eq!(bench.slot.state(Dependency::Database).expect("tried").state, State::Up);
    }

    #[test]
    fn a_flood_is_logged_when_it_begins_and_when_it_ends_with_its_count() {
        let mut bench = Bench::new();
        let mut lines = Vec::new();
        for second in 0..30 {
            let network = fault(Cause::TooManyProofs, &format!("from 192.0.2.{second}"));
            lines.extend(bench.after(1, |slot, now| slot.add(network, 100, now)));
        }
        assert_eq!(bench.slot.state(Dependency::Bcrypt).expect("tried").state, State::Degraded);
        (0..11).for_each(|_| lines.extend(bench.after(1, |_, _| ())));
        let begun = fault(Cause::TooManyProofs, "from 192.0.2.0");
        assert_eq!(lines, [Entry::Lost(begun, 100), Entry::Back(Some((3000, Duration::from_secs(29))))]);
    }

    #[test]
    fn an_attempt_that_succeeds_does_not_end_the_state_of_failed_calls() {
        let mut bench = Bench::new();
        bench.after(0, |slot, now| slot.add(fault(Cause::Refused, "division by zero"), 1, now));
        bench.after(1, |slot, _| slot.set(true, Vec::new()));
        assert_eq!(bench.slot.state(Dependency::Database).expect("tried").state, State::Degraded);
        bench.after(10, |_, _| ());
        assert_eq!(bench.slot.state(Dependency::Database).expect("tried").state, State::Up);
    }
}
