//! Facts about the queue, with a simulated clock and threads that compute nothing.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{credential::Prefix, verifier::networks::Networks};

const MILLISECOND: Duration = Duration::from_millis(1);
/// Time of a simulated turn.
const TURN: u64 = 60;

/// One credential that somebody shows.
#[derive(Debug, Clone, Copy)]
struct Sent {
    /// Milliseconds after the start.
    at: u64,
    prefix: u32,
    address: Option<u32>,
    deadline: u64,
    kind: Kind,
    /// How long its computation takes, if there is one.
    computation: u64,
    /// How long its look-up takes; none when memory has its records.
    lookup: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    MadeUp,
    WrongSecret,
    Good,
}

impl Sent {
    fn new(at: u64, prefix: u32, kind: Kind) -> Self {
        Self { at, prefix, address: None, deadline: 2000, kind, computation: TURN - 5, lookup: None }
    }

    /// When its look-up ends.
    fn found_at(&self) -> u64 {
        self.at + self.lookup.unwrap_or(0)
    }

    fn source(self) -> Source {
        let networks = self.address.map(|n| Networks::around([10, 0, (n / 4) as u8, (n % 4) as u8].into()));
        let prefix = Prefix::parse(&format!("p{:07}", self.prefix)).expect("a prefix");
        Source { prefix, networks: networks.unwrap_or_default() }
    }
}

/// What became of each, and after how many milliseconds from the start.
type Answers = BTreeMap<usize, (Outcome, u64)>;

fn config() -> QueueConfig {
    QueueConfig { threads: 2, waiting: 20, failed_attempts: None }
}

/// Runs to the end, as threads and a precise clock would.
fn run(config: QueueConfig, sent: &[Sent]) -> Answers {
    run_threads(config, sent).0
}

/// Also tells at which millisecond a computation began, and how many ran then.
fn run_threads(config: QueueConfig, sent: &[Sent]) -> (Answers, Vec<(u64, usize)>) {
    let mut busy = Vec::new();
    let start = Instant::now();
    let millis = |n: u64| start + MILLISECOND * n as u32;
    let mut queue = Queue::new(config, MILLISECOND * TURN as u32);
    let mut arrivals: Vec<_> = sent.iter().copied().enumerate().collect();
    arrivals.sort_by_key(|(n, sent)| (sent.found_at(), *n));
    let mut arrivals = arrivals.into_iter().peekable();
    let mut computing: Vec<(u64, u64, ComputationResult)> = Vec::new();
    let mut answers = Answers::new();
    loop {
        let ceil = |at: Instant| at.duration_since(start).as_micros().div_ceil(1000) as u64;
        let event = queue.next_event().map(ceil);
        let next = [
            arrivals.peek().map(|(_, sent)| sent.found_at()),
            event,
            computing.iter().map(|(at, ..)| *at).min(),
        ];
        let Some(now) = next.into_iter().flatten().min() else { return (answers, busy) };
        queue.advance(millis(now));
        let (done, running) = computing.into_iter().partition(|(at, ..)| *at <= now);
        computing = running;
        for (_, arrival, computed) in done {
            queue.finish(arrival, computed, millis(now));
        }
        while let Some((n, sent)) = arrivals.next_if(|(_, sent)| sent.found_at() <= now) {
            let found = if sent.kind == Kind::Good {
                ComputationResult::Match(0)
            } else {
                ComputationResult::Mismatch
            };
            let job = (sent.kind != Kind::MadeUp).then_some((sent.computation, found));
            let deadline = millis(sent.at + sent.deadline);
            let (arrived, from_memory) = (millis(sent.at), sent.lookup.is_none());
            let attempt =
                Attempt { source: sent.source(), arrived, from_memory, deadline, job, answer_to: n };
            queue.arrive(attempt, millis(now));
        }
        while let Some((arrival, (computation, found))) = queue.next_job() {
            computing.push((now + computation, arrival, found));
            busy.push((now, computing.len()));
        }
        for (n, outcome) in queue.take_answers() {
            assert!(answers.insert(n, (outcome, now)).is_none(), "answered twice");
        }
    }
}

fn sent() -> impl Strategy<Value = Vec<(Sent, bool)>> {
    let one = (0..3000_u64, 0..12_u32, prop::option::of(0..12_u32), 50..1500_u64, 0..10_u8, 1..TURN);
    let one = one.prop_map(|(at, prefix, address, deadline, kind, computation)| {
        // Of some prefixes there are good keys; of the others it is the test's choice whether they exist.
        let kind = if kind == 0 && prefix < 3 { Kind::Good } else { Kind::WrongSecret };
        Sent { at, prefix, address, deadline, kind, computation, lookup: None }
    });
    prop::collection::vec((one, any::<bool>()), 1..80)
}

fn as_kind(sent: &[(Sent, bool)], exists: impl Fn(&Sent, bool) -> bool) -> Vec<Sent> {
    let kind = |(one, flag): &(Sent, bool)| match one.kind {
        Kind::WrongSecret if !exists(one, *flag) => Sent { kind: Kind::MadeUp, ..*one },
        _ => *one,
    };
    sent.iter().map(kind).collect()
}

/// What those without the right secret see.
fn refusals(sent: &[Sent], answers: &Answers) -> Answers {
    answers.iter().filter(|(n, _)| sent[**n].kind != Kind::Good).map(|(n, answer)| (*n, *answer)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// The same attempts, of prefixes that exist and of prefixes that do not: the same answers at the same times, for
    /// those attempts and for all others. Throttled or not, through bursts, floods and deadlines, among good keys.
    #[test]
    fn made_up_prefixes_and_wrong_secrets_get_the_same_answers_at_the_same_times(
        sent in sent(), waiting in 2..30_usize, threads in 2..5_usize, limit in prop::option::of(1..5_u32),
    ) {
        let failed_attempts = limit.map(|count| FailedAttempts { count, window: Duration::from_secs(1) });
        let config = QueueConfig { threads, waiting, failed_attempts };
        let real = as_kind(&sent, |_, _| true);
        let expected = run(config, &real);
        let expected_refusals = refusals(&real, &expected);
        prop_assert_eq!(expected.len(), sent.len(), "each is answered");
        let made_up = as_kind(&sent, |_, _| false);
        let mixed = as_kind(&sent, |_, flag| flag);
        let by_prefix = as_kind(&sent, |sent, _| sent.prefix % 2 == 0);
        for other in [made_up, mixed, by_prefix] {
            prop_assert_eq!(&refusals(&other, &run(config, &other)), &expected_refusals);
        }
    }

    /// However many made-up keys there are, a good key is answered as if there were none, unless it loses its place.
    #[test]
    fn made_up_keys_take_no_thread(sent in sent()) {
        let config = QueueConfig { waiting: usize::MAX, ..config() };
        let flood = as_kind(&sent, |_, _| false);
        let alone: Vec<_> = flood.iter().copied().filter(|sent| sent.kind == Kind::Good).collect();
        let good = |answers: Answers, sent: &[Sent]| -> Vec<_> {
            answers.into_iter().filter(|(n, _)| sent[*n].kind == Kind::Good).map(|(_, answer)| answer).collect()
        };
        let in_flood = good(run(config, &flood), &flood);
        for ((outcome, at), (alone_outcome, alone_at)) in in_flood.iter().zip(good(run(config, &alone), &alone)) {
            if (*outcome, alone_outcome) == (Outcome::Match(0), Outcome::Match(0)) {
                // The order between two good keys may differ: their prefixes may be marked.
                prop_assert!(*at <= alone_at + 8 * TURN, "{at} {alone_at}");
            }
        }
    }
}

#[test]
fn refusal_takes_a_turn_at_every_cost_of_the_hash() {
    for kind in [Kind::MadeUp, Kind::WrongSecret] {
        for computation in [1, TURN] {
            let answers = run(config(), &[Sent { computation, ..Sent::new(0, 1, kind) }]);
            assert_eq!(answers[&0], (Outcome::Mismatch, TURN), "{kind:?}");
        }
    }
    let good = Sent { computation: 20, ..Sent::new(0, 1, Kind::Good) };
    assert_eq!(run(config(), &[good])[&0], (Outcome::Match(0), 20));
}

/// Made-up prefixes must be looked up in the database; one that exists, and is in use, is in memory.
#[test]
fn refusal_does_not_tell_whether_the_prefix_was_in_memory() {
    let slow =
        |n: u64| Sent { lookup: Some(3 + n % 2), ..Sent::new(1000 * n, 1000 + n as u32, Kind::MadeUp) };
    let earlier: Vec<_> = (0..70).map(slow).collect();
    let after = |lookup, kind| {
        let probe = Sent { lookup, ..Sent::new(70_000, 1, kind) };
        run(config(), &[&earlier[..], &[probe]].concat())[&70]
    };
    let made_up = after(Some(3), Kind::MadeUp);
    assert_eq!(made_up, (Outcome::Mismatch, 70_000 + 5 + TURN), "five after its arrival, then a turn");
    assert_eq!(after(None, Kind::WrongSecret), made_up);
    assert_eq!(after(None, Kind::MadeUp), made_up, "an unknown prefix that memory knows");
    let good = after(None, Kind::Good);
    assert_eq!(good, (Outcome::Match(0), 70_000 + TURN - 5), "a good key waits for nothing");
}

#[test]
fn parallel_guesses_take_turns_on_a_prefix_that_exists_and_on_one_that_does_not() {
    for kind in [Kind::MadeUp, Kind::WrongSecret] {
        let burst: Vec<_> = (0..30).map(|_| Sent { deadline: 500, ..Sent::new(0, 1, kind) }).collect();
        let answers = run(config(), &burst);
        let refused: Vec<_> = answers
            .values()
            .filter(|(outcome, _)| *outcome == Outcome::Mismatch)
            .map(|(_, at)| *at)
            .collect();
        assert_eq!(refused.iter().max(), Some(&(9 * TURN)), "{kind:?}");
        assert_eq!(refused.len(), 9);
        let at_once = answers.values().filter(|answer| **answer == (Outcome::Overloaded, 0)).count();
        assert_eq!(at_once, 30 - 20 - 1, "one is in its turn, and twenty wait");
    }
}

#[test]
fn flood_of_made_up_keys_behind_one_proxy_delays_no_good_key() {
    let mut sent: Vec<_> = (0..4000).map(|n| Sent::new(n, 1000 + n as u32, Kind::MadeUp)).collect();
    let good = (0..40).map(|n| Sent::new(100 * n + 50, n as u32, Kind::Good));
    let first_good = sent.len();
    sent.extend(good);
    let answers = run(QueueConfig { waiting: 384, ..config() }, &sent);
    for n in first_good..sent.len() {
        assert_eq!(answers[&n], (Outcome::Match(0), sent[n].at + sent[n].computation));
    }
}

#[test]
fn wrong_secrets_of_twenty_prefixes_delay_a_good_key_by_one_computation() {
    let mut sent: Vec<_> =
        (0..800).map(|n| Sent::new(5 * n, 100 + n as u32 % 20, Kind::WrongSecret)).collect();
    let first_good = sent.len();
    // The first two seconds are for the marks.
    sent.extend((0..20).map(|n| Sent::new(2000 + 90 * n, n as u32, Kind::Good)));
    let answers = run(QueueConfig { waiting: 384, ..config() }, &sent);
    for n in first_good..sent.len() {
        let (outcome, at) = answers[&n];
        assert_eq!(outcome, Outcome::Match(0));
        assert!(at - sent[n].at <= 2 * TURN, "{}", at - sent[n].at);
    }
}

/// However many wrong secrets there are, one of two threads is free for good keys and for known keys' checks.
#[test]
fn wrong_secrets_take_half_of_the_threads() {
    let flood: Vec<_> = (0..800).map(|n| Sent::new(5 * n, 100 + n as u32 % 20, Kind::WrongSecret)).collect();
    for threads in [2, 4] {
        let config = QueueConfig { threads, waiting: 384, ..config() };
        let (_, busy) = run_threads(config, &flood);
        // The first two seconds are for the marks.
        let busy: Vec<_> = busy.into_iter().filter(|(at, _)| (2000..4000).contains(at)).collect();
        let crowded = busy.iter().filter(|(_, running)| *running > threads / 2).count();
        assert!(busy.len() > 20 && crowded * 10 <= busy.len(), "{crowded} of {}", busy.len());
    }
}

#[test]
fn throttled_network_is_told_to_come_back_and_makes_room_for_others() {
    let failed_attempts = Some(FailedAttempts { count: 3, window: Duration::from_secs(60) });
    let config = QueueConfig { failed_attempts, ..config() };
    let attacker = |n: u64| Sent { address: Some(1), ..Sent::new(10 * n, 1000 + n as u32, Kind::MadeUp) };
    let mut sent: Vec<_> = (0..200).map(attacker).collect();
    // As many as have room at once.
    sent.extend((0..20).map(|n| Sent { address: Some(4 * n + 4), ..Sent::new(1500, n, Kind::Good) }));
    let answers = run(config, &sent);
    let told = answers.values().filter(|(outcome, _)| matches!(outcome, Outcome::TooManyAttempts(_))).count();
    assert!(told > 100, "{told}");
    let overloaded_late = (100..200).filter(|n| answers[n].0 == Outcome::Overloaded).count();
    assert_eq!(overloaded_late, 0);
    for n in 200..220 {
        assert_eq!(answers[&n].0, Outcome::Match(0), "{n}");
    }
}

#[test]
fn what_waits_is_bounded_and_gone_after_its_deadline() {
    let now = Instant::now();
    let mut queue = Queue::<(), usize>::new(config(), MILLISECOND * TURN as u32);
    for n in 0..10_000 {
        let source = Sent::new(0, n as u32, Kind::MadeUp).source();
        let deadline = now + 500 * MILLISECOND;
        let attempt = Attempt { source, arrived: now, from_memory: false, deadline, job: None, answer_to: n };
        queue.arrive(attempt, now);
        assert!(queue.attempts.len() <= config().waiting + 1);
    }
    queue.advance(now + Duration::from_secs(10));
    assert_eq!((queue.attempts.len(), queue.take_answers().len()), (0, 10_000));
    assert_eq!(queue.next_event(), None);
}

/// Threads that work ahead of the simulation must not make the one late whose turn comes first.
#[test]
fn thread_is_left_for_whom_the_simulation_serves_next() {
    for kind in [Kind::MadeUp, Kind::WrongSecret] {
        let (guessed, fresh) = (5, 6);
        let sent = [
            Sent::new(0, guessed, Kind::WrongSecret),
            Sent::new(50, guessed, Kind::WrongSecret),
            Sent::new(50, guessed, Kind::WrongSecret),
            Sent::new(56, fresh, kind),
        ];
        assert_eq!(run(config(), &sent)[&3], (Outcome::Mismatch, 2 * TURN), "{kind:?}");
    }
}
