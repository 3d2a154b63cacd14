//! The use of one key in this instance: a window for each span. Pure.

use std::time::{Duration, Instant};

use crate::{
    clock::Timestamps,
    limits::{Charge, LimitScope, LimitStatus, PerSpan, Span},
};

/// The use of one key.
#[derive(Debug, Default)]
pub(super) struct Counts(PerSpan<Option<Window>>);

#[derive(Debug, Clone, Copy)]
struct Window {
    number: u64,
    used: u64,
    /// The end of the window by the monotonic clock.
    end: Instant,
}

impl Counts {
    /// Charges every window that has a limit, or none.
    pub(super) fn charge(&mut self, charge: &Charge, now: Timestamps) -> Result<LimitStatus, LimitStatus> {
        let limited = charge.limited();
        let fits = limited.clone().fold(true, |fits, (span, limit)| {
            let used = self.window(span, now).used;
            fits && limit.saturating_sub(used) >= charge.cost()
        });
        if fits {
            limited.for_each(|(span, _)| self.window(span, now).used += charge.cost());
            return Ok(self.status(charge, now));
        }
        Err(self.status(charge, now))
    }

    /// Whether every window has ended, so that nothing is lost with the counts.
    pub(super) fn have_ended(&self, now: Timestamps) -> bool {
        self.0.iter().flatten().all(|window| now.monotonic >= window.end)
    }

    /// The present window of a span.
    ///
    /// A wall clock that is set back starts no new window: the present one continues to its end.
    fn window(&mut self, span: Span, now: Timestamps) -> &mut Window {
        let wall = since_epoch(now);
        let number = span.number(wall);
        let fresh = Window { number, used: 0, end: now.monotonic + span.ends_in(number, wall) };
        let window = self.0[span as usize].get_or_insert(fresh);
        let is_present = number == window.number || (number < window.number && now.monotonic < window.end);
        if !is_present {
            *window = fresh;
        }
        window
    }

    fn status(&self, charge: &Charge, now: Timestamps) -> LimitStatus {
        charge.status(LimitScope::Local, |span, limit| match self.0[span as usize] {
            Some(window) => {
                let reset = window.end.saturating_duration_since(now.monotonic);
                (limit.saturating_sub(window.used), reset)
            }
            None => (limit, Duration::ZERO),
        })
    }
}

/// Wall-clock time as a length; a clock before 1970 counts as at 1970.
pub(super) fn since_epoch(now: Timestamps) -> Duration {
    Duration::try_from(now.wall - time::OffsetDateTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{KeyId, Limits};
    use proptest::prelude::*;
    use std::num::NonZeroU32;
    use time::{OffsetDateTime, macros::datetime};

    const START: OffsetDateTime = datetime!(2026-11-25 10:00:00 UTC);

    fn charge(minute: Option<u64>, hour: Option<u64>, cost: u32) -> Charge {
        let limits = Limits { minute, hour, day: None };
        Charge { key: KeyId(7), limits, cost: NonZeroU32::new(cost).expect("not 0") }
    }

    /// Times of both clocks: seconds that have passed, and the error of the wall clock in seconds.
    fn timestamps() -> impl Fn(f64, f64) -> Timestamps {
        let begun = Instant::now();
        move |passed, off| Timestamps {
            wall: START + time::Duration::seconds_f64(passed + off),
            monotonic: begun + Duration::from_secs_f64(passed),
        }
    }

    #[test]
    fn no_more_than_the_limit_passes_in_a_window() {
        let (mut counts, at) = (Counts::default(), timestamps());
        let charge = charge(Some(3), None, 1);
        let passes = |counts: &mut Counts, second| counts.charge(&charge, at(second, 0.0)).is_ok();
        assert_eq!(
            [1.0, 2.0, 3.0, 59.9].map(|second| passes(&mut counts, second)),
            [true, true, true, false]
        );
        assert_eq!(
            [60.0, 61.0, 62.0, 63.0].map(|second| passes(&mut counts, second)),
            [true, true, true, false]
        );
    }

    #[test]
    fn refused_request_is_charged_in_no_window() {
        let (mut counts, at) = (Counts::default(), timestamps());
        let status = counts.charge(&charge(Some(10), Some(4), 4), at(1.0, 0.0)).expect("passes");
        assert_eq!(status.windows.map(|left| left.map(|left| left.remaining)), [Some(6), Some(0), None]);
        let status = counts.charge(&charge(Some(10), Some(4), 4), at(2.0, 0.0)).expect_err("full");
        assert_eq!(status.windows.map(|left| left.map(|left| left.remaining)), [Some(6), Some(0), None]);
        assert_eq!(status.retry_after(4), Duration::from_secs(3598));
    }

    #[test]
    fn clock_set_back_gives_nothing_twice() {
        let (mut counts, at) = (Counts::default(), timestamps());
        let charge = charge(Some(1), None, 1);
        assert!(counts.charge(&charge, at(60.5, 0.0)).is_ok());
        // Back into the minute before, and shortly after past its end again.
        assert!(counts.charge(&charge, at(61.0, -2.0)).is_err());
        let status = counts.charge(&charge, at(63.0, -2.0)).expect_err("the same window");
        assert_eq!(status.retry_after(1), Duration::from_secs(57));
        assert!(counts.charge(&charge, at(122.5, -2.0)).is_ok());
    }

    #[test]
    fn clock_that_was_far_ahead_denies_no_key_for_longer_than_a_window() {
        let (mut counts, at) = (Counts::default(), timestamps());
        let charge = charge(Some(1), None, 1);
        assert!(counts.charge(&charge, at(0.0, 86_400.0)).is_ok());
        assert!(counts.charge(&charge, at(59.0, 0.0)).is_err());
        assert!(counts.charge(&charge, at(60.0, 0.0)).is_ok());
    }

    proptest! {
        /// The reference keeps every request that passed and sums them each time.
        #[test]
        fn agrees_with_a_slow_reference(
            limits in (proptest::option::of(0..20u64), proptest::option::of(0..60u64)),
            requests in proptest::collection::vec((1..6u32, 0..20u64), 1..200),
        ) {
            let (mut counts, at) = (Counts::default(), timestamps());
            let (mut passed, mut second) = (Vec::<(u64, u64)>::new(), 0);
            for (cost, later) in requests {
                second += later;
                let used = |span: u64| -> u64 {
                    passed.iter().filter(|(at, _)| at / span == second / span).map(|(_, cost)| cost).sum()
                };
                let fits = |limit: Option<u64>, span| limit.is_none_or(|limit| used(span) + u64::from(cost) <= limit);
                let expected = fits(limits.0, 60) && fits(limits.1, 3600);
                let charged = counts.charge(&charge(limits.0, limits.1, cost), at(second as f64, 0.0));
                prop_assert_eq!(charged.is_ok(), expected, "at {}", second);
                if expected {
                    passed.push((second, cost.into()));
                }
            }
        }
    }
}
