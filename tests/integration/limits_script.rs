//! The script that Redis runs, with a clock that is set at will, against a slow reference.

use proptest::{prelude::*, test_runner::TestRunner};

use crate::harness::redis::Redis;

/// The very script, but for its clock.
fn script() -> String {
    let script = include_str!("../../src/limiter/redis/charge.lua");
    let clock = "redis.call('TIME')";
    assert_eq!(script.matches(clock).count(), 1);
    script.replace(clock, "redis.call('LRANGE', 'clock', 0, 1)")
}

struct Bench {
    redis: Redis,
    script: String,
}

/// One window, as it is asked about.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    limit: u64,
    number: u64,
    own: u64,
    back: u64,
}

impl Bench {
    fn new() -> Self {
        Self { redis: Redis::start(), script: script() }
    }

    fn set_clock(&self, seconds: u64) {
        self.redis.command(&["DEL", "clock"]);
        self.redis.command(&["RPUSH", "clock", &seconds.to_string(), "0"]);
    }

    /// The grant, and for each window its number, what is used, and what of that by `me`.
    fn charge(&self, me: &str, need: u64, want: u64, part: u64, lines: [Window; 2]) -> (u64, [[u64; 3]; 2]) {
        let mut words = vec![
            "EVAL".to_owned(),
            self.script.clone(),
            "2".into(),
            "keystile:{1}:limit:minute".into(),
            "keystile:{1}:limit:hour".into(),
        ];
        words.extend([need, want, part].map(|number| number.to_string()));
        words.push(me.into());
        for (span, line) in [60, 3600].into_iter().zip(lines) {
            words.extend([span, line.limit, line.number, line.own, line.back].map(|n| n.to_string()));
        }
        let answer = self.redis.command(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let numbers: Vec<u64> = answer.lines().map(|line| line.parse().unwrap()).collect();
        let window = |at: usize| [numbers[at], numbers[at + 1], numbers[at + 2]];
        assert_eq!(numbers.len(), 9);
        (numbers[2], [window(3), window(6)])
    }

    fn plain(&self, cost: u64, minute: u64, hour: u64) -> bool {
        let line = |limit| Window { limit, ..Window::default() };
        self.charge("a", cost, cost, 1, [line(minute), line(hour)]).0 > 0
    }
}

/// Of the first day of 2100: Redis drops by its own clock what has expired, so this must not be past.
const NOON: u64 = 4_102_488_000;

#[test]
fn script_agrees_with_a_slow_reference() {
    let bench = Bench::new();
    let events = proptest::collection::vec((1..6u64, 0..25u64, 0..4u64), 1..60);
    let limits = (1..20u64, 1..50u64);
    let config = ProptestConfig { cases: 40, ..ProptestConfig::default() };
    let run = TestRunner::new(config).run(&(limits, events), |((minute, hour), events)| {
        bench.redis.command(&["FLUSHALL"]);
        let (mut passed, mut now) = (Vec::<(u64, u64)>::new(), NOON);
        for (cost, later, ahead) in events {
            now += later;
            bench.set_clock(now);
            let used = |span: u64| -> u64 {
                passed.iter().filter(|(at, _)| at / span == now / span).map(|(_, amount)| amount).sum()
            };
            let room = (minute as i64 - used(60) as i64).min(hour as i64 - used(3600) as i64);
            let fits = room >= cost as i64;
            let expected = if fits { cost + ahead.min((room as u64 - cost) / 2) } else { 0 };
            let line = |limit| Window { limit, ..Window::default() };
            let (grant, [[number, in_minute, _], [_, in_hour, _]]) =
                bench.charge("a", cost, cost + ahead, 2, [line(minute), line(hour)]);
            prop_assert_eq!(grant, expected);
            prop_assert_eq!([number, in_minute, in_hour], [now / 60, used(60) + grant, used(3600) + grant]);
            passed.push((now, grant));
        }
        Ok(())
    });
    run.unwrap();
}

#[test]
fn clock_set_back_a_little_goes_on_with_the_window_that_was_begun() {
    let bench = Bench::new();
    bench.set_clock(NOON + 1);
    assert!(bench.plain(3, 3, 100));
    for second in [NOON - 1, NOON + 2, NOON + 59] {
        bench.set_clock(second);
        assert!(!bench.plain(1, 3, 100), "{second}");
    }
    bench.set_clock(NOON + 60);
    assert!(bench.plain(3, 3, 100));
}

#[test]
fn clock_that_was_far_ahead_gives_nothing_twice_and_locks_nobody_out() {
    let bench = Bench::new();
    bench.set_clock(NOON + 86_400);
    assert!(bench.plain(3, 3, 5));
    bench.set_clock(NOON);
    assert!(!bench.plain(1, 3, 5), "what was used goes along");
    bench.set_clock(NOON + 60);
    assert!(bench.plain(2, 3, 5), "a new minute");
    assert!(!bench.plain(1, 3, 5), "the same hour");
    bench.set_clock(NOON + 3600);
    assert!(bench.plain(3, 3, 5));
}

#[test]
fn time_to_live_is_set_once_and_outlasts_the_window() {
    let bench = Bench::new();
    let clock = || -> u64 { bench.redis.command(&["TIME"]).lines().next().unwrap().parse().unwrap() };
    // To the second. Before Redis 7.0, only the time to live can be read.
    let ends = "local now = redis.call('TIME') \
                return math.floor(now[1] + now[2] / 1e6 + redis.call('PTTL', KEYS[1]) / 1000 + 0.5)";
    let expires = |span: &str| -> u64 {
        bench.redis.command(&["EVAL", ends, "1", &format!("keystile:{{1}}:limit:{span}")]).parse().unwrap()
    };
    let now = clock();
    bench.set_clock(now);
    assert!(bench.plain(1, 100, 100));
    let first = (expires("minute"), expires("hour"));
    assert_eq!(first, ((now / 60 + 1) * 60 + 60, (now / 3600 + 1) * 3600 + 60));
    // A time to live that somebody changed stays changed: it is not set again.
    bench.redis.command(&["EXPIREAT", "keystile:{1}:limit:minute", &(now + 500).to_string()]);
    assert!(bench.plain(1, 100, 100));
    assert_eq!((expires("minute"), expires("hour")), (now + 500, first.1));
}

#[test]
fn who_is_refused_has_written_nothing() {
    let bench = Bench::new();
    bench.set_clock(NOON);
    assert!(!bench.plain(5, 4, 100));
    assert_eq!(bench.redis.keys("keystile:*"), [] as [String; 0]);
}

#[test]
fn what_redis_forgot_is_restored_once_by_each_instance() {
    let bench = Bench::new();
    bench.set_clock(NOON);
    let line = |own, back| Window { limit: 100, number: NOON / 60, own, back };
    let lines = |own, back| [line(own, back), Window { number: NOON / 3600, ..line(own, back) }];
    for _ in 0..2 {
        assert_eq!(bench.charge("a", 0, 0, 1, lines(30, 0)).1[0][1..], [30, 30]);
    }
    assert_eq!(bench.charge("b", 1, 1, 1, lines(20, 0)), (1, [[NOON / 60, 51, 21], [NOON / 3600, 51, 21]]));
    assert_eq!(bench.charge("a", 0, 0, 1, lines(30, 10)).1[0][1..], [41, 20]);
    // No instance returns use of others, or of another window.
    assert_eq!(bench.charge("c", 0, 0, 1, lines(0, 10)).1[0][1..], [41, 0]);
    let other = Window { number: NOON / 60 - 1, ..line(50, 10) };
    assert_eq!(bench.charge("a", 0, 0, 1, [other; 2]).1[0][1..], [41, 20]);
}

#[test]
fn new_window_knows_nothing_of_who_used_the_last_one() {
    let bench = Bench::new();
    let lines = |number, own| [Window { limit: 100, number, own, back: 0 }; 2];
    bench.set_clock(NOON);
    for me in ["a", "b"] {
        bench.charge(me, 5, 5, 1, lines(0, 0));
    }
    bench.set_clock(NOON + 60);
    bench.charge("a", 1, 1, 1, lines(0, 0));
    assert_eq!(bench.charge("b", 0, 0, 1, lines(NOON / 60 + 1, 2)).1[0], [NOON / 60 + 1, 3, 2]);
}
