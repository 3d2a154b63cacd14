//! Counts of recent failures by prefix and by network. Pure: the time is passed in.
//!
//! Memory is bounded: 65,536 counts are kept. A failure is counted only when its simulated turn has ended. So a flood
//! cannot add more failures than there are turns: some dozens a second at cost 10.
//!
//! The cache evicts counts that were updated once before counts that are updated repeatedly. So a flood from new
//! addresses each time evicts neither the count of its own /48 nor the count of a prefix under attack. A network or
//! prefix whose count was evicted counts as clean. Two networks never share a count, so the failures of one network
//! never mark another. The hash function of the cache has a random key.

use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::networks::Networks;
use crate::{
    cache::{Cache, cache},
    config::FailedAttempts,
    credential::Prefix,
};

/// The origin of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Source {
    /// The prefix of the credential.
    pub(super) prefix: Prefix,
    /// The networks of the client. Empty if Envoy vouches for no address.
    pub(super) networks: Networks,
}

/// The priority class of an attempt, from the earlier failures of its prefix and its networks. The first class is
/// served first.
///
/// A marked prefix and a marked network have the same rank. Attackers who guess a prefix mark it, so its owner must not
/// be served after the attacker. A network is marked by its worst client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Class {
    /// Neither the prefix nor a network has failed recently.
    Clean,
    /// Either the prefix or a network has failed recently.
    OneMark,
    /// Both the prefix and a network have failed recently.
    TwoMarks,
    /// A network has failed more often than [`FailedAttempts`] allows.
    Throttled,
}

/// Counts failures.
pub(super) struct Marks {
    /// The failures after which a network is throttled. `None`: networks are never throttled.
    limit: Option<FailedAttempts>,
    counts: Cache<Subject, Count>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Subject {
    Prefix(Prefix),
    Network(IpNet),
}

/// Failures in this window and in the one before it.
#[derive(Clone, Copy)]
struct Count {
    window_started: Instant,
    current: u32,
    previous: u32,
}

/// Maximum number of counts.
const CAPACITY: usize = 1 << 16;

/// Factor on the allowed failures, by the width of the network. Wider networks have more clients.
const ALLOWANCES: [u32; 3] = [1, 4, 16];

/// Length of the window if no limit defines it.
const WINDOW: Duration = Duration::from_secs(60);

impl Class {
    /// Every class, in the order of service.
    pub(super) const ALL: [Self; 4] = [Self::Clean, Self::OneMark, Self::TwoMarks, Self::Throttled];

    /// The name in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::OneMark => "one_mark",
            Self::TwoMarks => "two_marks",
            Self::Throttled => "throttled",
        }
    }
}

impl Source {
    /// Whether a failure of one source can mark the other: they share the prefix or a network.
    pub(super) fn is_related(&self, other: &Self) -> bool {
        self.prefix == other.prefix
            || self.networks.by_width().any(|network| other.networks.by_width().any(|other| network == other))
    }
}

impl Marks {
    pub(super) fn new(limit: Option<FailedAttempts>) -> Self {
        Self { limit, counts: cache(CAPACITY) }
    }

    /// Counts a failure.
    pub(super) fn add_failure(&self, source: &Source, now: Instant) {
        let networks = source.networks.by_width().map(|(_, network)| Subject::Network(network));
        for subject in networks.chain([Subject::Prefix(source.prefix)]) {
            let mut count = self.count(&subject, now);
            count.current = count.current.saturating_add(1);
            self.counts.insert(subject, count);
        }
    }

    /// The current class of an attempt.
    pub(super) fn class(&self, source: &Source, now: Instant) -> Class {
        if self.throttled(source, now).next().is_some() {
            return Class::Throttled;
        }
        let prefix_failed = self.count(&Subject::Prefix(source.prefix), now).recent() > 0;
        let mut networks = source.networks.by_width();
        let network_failed = networks.any(|(width, network)| {
            self.count(&Subject::Network(network), now).recent() >= ALLOWANCES[width]
        });
        match (prefix_failed, network_failed) {
            (false, false) => Class::Clean,
            (true, true) => Class::TwoMarks,
            _ => Class::OneMark,
        }
    }

    /// The time until the throttling may end, if the network does not fail again. Minimum: one second.
    pub(super) fn retry_after(&self, source: &Source, now: Instant) -> Duration {
        let waits = self.throttled(source, now).map(|count| count.window_started + self.window() - now);
        waits.max().unwrap_or_default().max(Duration::from_secs(1))
    }

    /// The counts of the throttled networks.
    fn throttled(&self, source: &Source, now: Instant) -> impl Iterator<Item = Count> {
        let networks = self.limit.map(|limit| (limit, source.networks.by_width()));
        networks.into_iter().flat_map(move |(limit, networks)| {
            networks.filter_map(move |(width, network)| {
                let count = self.count(&Subject::Network(network), now);
                let allowed = limit.count.saturating_mul(ALLOWANCES[width]);
                (count.estimate(now, limit.window) >= f64::from(allowed)).then_some(count)
            })
        })
    }

    fn window(&self) -> Duration {
        self.limit.map_or(WINDOW, |limit| limit.window)
    }

    /// The count, moved to the window that contains `now`.
    fn count(&self, subject: &Subject, now: Instant) -> Count {
        let fresh = Count { window_started: now, current: 0, previous: 0 };
        let Some(count) = self.counts.get(subject) else { return fresh };
        let window = self.window();
        match now.saturating_duration_since(count.window_started) {
            age if age < window => count,
            age if age < 2 * window => {
                Count { window_started: count.window_started + window, current: 0, previous: count.current }
            }
            _ => fresh,
        }
    }
}

impl Count {
    /// Failures in this window and in the one before it.
    fn recent(self) -> u32 {
        self.current.saturating_add(self.previous)
    }

    /// Estimated failures within the last `window`. The failures of the previous window are assumed to be spread evenly
    /// over it.
    fn estimate(self, now: Instant, window: Duration) -> f64 {
        let elapsed = now.saturating_duration_since(self.window_started).div_duration_f64(window);
        f64::from(self.current) + f64::from(self.previous) * (1.0 - elapsed).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn source(prefix: &str, address: Option<&str>) -> Source {
        let networks = address.map(|address| Networks::around(address.parse().expect("an address")));
        Source { prefix: Prefix::parse(prefix).expect("a prefix"), networks: networks.unwrap_or_default() }
    }

    fn marks() -> Marks {
        Marks::new(Some(FailedAttempts { count: 5, window: MINUTE }))
    }

    #[test]
    fn failure_marks_its_prefix_and_its_network_for_a_while() {
        let (marks, now) = (marks(), Instant::now());
        marks.add_failure(&source("aaaaaaaa", Some("192.0.2.1")), now);
        for (prefix, address, class) in [
            ("aaaaaaaa", Some("192.0.2.1"), Class::TwoMarks),
            ("aaaaaaaa", Some("198.51.100.1"), Class::OneMark),
            ("aaaaaaaa", None, Class::OneMark),
            ("bbbbbbbb", Some("192.0.2.1"), Class::OneMark),
            ("bbbbbbbb", Some("192.0.2.2"), Class::Clean),
            ("bbbbbbbb", None, Class::Clean),
        ] {
            assert_eq!(marks.class(&source(prefix, address), now), class, "{prefix} {address:?}");
            assert_eq!(marks.class(&source(prefix, address), now + 2 * MINUTE), Class::Clean);
        }
    }

    #[test]
    fn new_64_each_time_marks_and_throttles_the_48() {
        let (marks, now) = (marks(), Instant::now());
        let from = |n: u32| source("aaaaaaaa", Some(&format!("2001:db8:1:{n:x}::1")));
        for n in 0..19 {
            marks.add_failure(&from(n), now);
        }
        let other = |prefix, address| marks.class(&source(prefix, Some(address)), now);
        assert_eq!(other("bbbbbbbb", "2001:db8:1:ffff::1"), Class::OneMark);
        marks.add_failure(&from(19), now);
        assert_eq!(other("bbbbbbbb", "2001:db8:1:ffff::1"), Class::Throttled);
        assert_eq!(other("bbbbbbbb", "2001:db9:1::1"), Class::Clean, "another provider");
    }

    #[test]
    fn throttled_network_is_let_off_after_the_window_and_no_prefix_is_throttled() {
        let (marks, now) = (marks(), Instant::now());
        let (with, without) = (source("aaaaaaaa", Some("192.0.2.1")), source("aaaaaaaa", None));
        for _ in 0..5 {
            marks.add_failure(&with, now);
            marks.add_failure(&without, now);
        }
        assert_eq!(marks.class(&with, now), Class::Throttled);
        assert_eq!(marks.class(&without, now), Class::OneMark);
        assert_eq!(marks.retry_after(&with, now), MINUTE);
        assert_eq!(marks.class(&with, now + MINUTE + MINUTE / 4), Class::TwoMarks);
    }

    #[test]
    fn no_network_is_throttled_where_that_is_off() {
        let (marks, now) = (Marks::new(None), Instant::now());
        let source = source("aaaaaaaa", Some("192.0.2.1"));
        for _ in 0..1000 {
            marks.add_failure(&source, now);
        }
        assert_eq!(marks.class(&source, now), Class::TwoMarks);
    }

    #[test]
    fn millions_of_addresses_push_out_neither_their_own_network_nor_a_guessed_prefix() {
        let (marks, now) = (marks(), Instant::now());
        for n in 0..300_000_u32 {
            let address = format!("2001:db8:{:x}:{:x}::1", n % 7, n / 7);
            let prefix = if n % 50 == 0 { "guessed0".to_owned() } else { format!("p{n:07}") };
            marks.add_failure(&source(&prefix, Some(&address)), now);
        }
        assert_eq!(marks.class(&source("unusual0", Some("2001:db8:3:ffff::1")), now), Class::Throttled);
        assert_eq!(marks.class(&source("guessed0", None), now), Class::OneMark);
        assert!(marks.counts.len() <= CAPACITY);
    }
}
