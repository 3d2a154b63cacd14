//! Judges answers by the times at which changes were committed. It knows nothing of Keystile but its promises.

use std::time::{Duration, Instant};

/// What the database says about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truth {
    Allowed,
    Denied,
    /// A server was lost or restored, and its rows were not read since.
    Unknown,
}

/// One change of a key.
#[derive(Debug, Clone, Copy)]
struct Change {
    /// When the statement was sent: from then on the new truth is possible.
    sent: Instant,
    /// When its commit returned: from then on the old truth is wrong.
    committed: Instant,
    truth: Truth,
}

/// What was true about a key, and when.
#[derive(Debug, Clone, Default)]
pub struct History(Vec<Change>);

/// A request of which the whole time is known.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub sent: Instant,
    pub received: Instant,
}

impl History {
    /// Notes that a change was sent and committed.
    pub fn change(&mut self, truth: Truth, sent: Instant, committed: Instant) {
        self.0.push(Change { sent, committed, truth });
    }

    /// What the last change made true.
    pub fn now(&self) -> Truth {
        self.0.last().map_or(Truth::Unknown, |change| change.truth)
    }

    /// When the last change was committed before then.
    pub fn last_change(&self, before: Instant) -> Option<Instant> {
        self.0.iter().map(|change| change.committed).filter(|committed| *committed < before).max()
    }

    /// The last changes, by their times relative to a request, in seconds.
    pub fn describe(&self, request: Instant) -> String {
        let relative = |time: Instant| {
            let after = time.saturating_duration_since(request).as_secs_f64();
            after - request.saturating_duration_since(time).as_secs_f64()
        };
        let changes = self.0.iter().rev().take(4).rev();
        let changes = changes.map(|change| {
            let Change { sent, committed, truth } = change;
            format!("{truth:?} {:.2}..{:.2}", relative(*sent), relative(*committed))
        });
        changes.collect::<Vec<_>>().join(", ")
    }

    /// Whether an answer may rest on this truth, if instances may be `late` to hear of changes.
    pub fn may(&self, truth: Truth, span: Span, late: Duration) -> bool {
        let from = span.sent.checked_sub(late).unwrap_or(span.sent);
        // A truth holds until the commit of the next change.
        let ends = self.0.iter().skip(1).map(|next| Some(next.committed)).chain([None]);
        self.0.iter().zip(ends).any(|(change, end)| {
            (change.truth == truth || change.truth == Truth::Unknown)
                && change.sent <= span.received
                && end.is_none_or(|end| end >= from)
        })
    }
}

/// For how long after a commit an answer may be of before it.
///
/// `outages` is how long the instance could not reach the database in that time, `stalled` how long this machine stood
/// still.
pub fn allowance(is_up: bool, outages: Duration, stalled: Duration) -> Duration {
    /// For what shares the machine.
    const SLACK: Duration = Duration::from_millis(700);
    let bound = if is_up { Duration::from_secs(1) } else { Duration::from_secs(30) + outages };
    bound + SLACK + stalled
}

/// How many requests were allowed in each minute of the clock, if surely in it.
#[derive(Debug, Clone, Default)]
pub struct Minutes(std::collections::BTreeMap<u64, u64>);

impl Minutes {
    /// Counts a request that was allowed between these times, in milliseconds of the clock.
    pub fn count(&mut self, sent: u64, received: u64) {
        if sent / 60_000 == received / 60_000 {
            *self.0.entry(sent / 60_000).or_default() += 1;
        }
    }

    /// The minutes, each with its number of requests.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(minute, count)| (*minute, *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn allow_is_judged_by_the_commit_and_denial_too() {
        let start = Instant::now();
        let at = |seconds: u64| start + seconds as u32 * SECOND;
        let span = |second| Span { sent: at(second), received: at(second) };
        let mut history = History::default();
        history.change(Truth::Allowed, at(0), at(1));
        history.change(Truth::Denied, at(10), at(12));
        for (second, late, allowed, denied) in
            [(0, 0, true, false), (9, 0, true, false), (10, 0, true, true), (12, 0, true, true)]
                .into_iter()
                .chain([
                    (13, 0, false, true),
                    (13, 1, true, true),
                    (14, 1, false, true),
                    (40, 30, true, true),
                ])
        {
            assert_eq!(history.may(Truth::Allowed, span(second), late * SECOND), allowed, "{second} {late}");
            assert_eq!(history.may(Truth::Denied, span(second), late * SECOND), denied, "{second} {late}");
        }
        history.change(Truth::Unknown, at(50), at(50));
        history.change(Truth::Denied, at(60), at(61));
        assert!(history.may(Truth::Allowed, span(55), Duration::ZERO), "not known");
        assert!(!history.may(Truth::Allowed, span(63), SECOND));
    }

    #[test]
    fn request_across_two_minutes_counts_for_neither() {
        let mut minutes = Minutes::default();
        minutes.count(59_999, 60_001);
        minutes.count(60_000, 119_999);
        assert_eq!(minutes.iter().collect::<Vec<_>>(), [(1, 1)]);
    }
}
