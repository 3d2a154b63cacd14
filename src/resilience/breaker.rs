//! Circuit breaker: stops calls to a dependency that does not answer, and tries again soon. Pure: the time is passed in.

use std::time::{Duration, Instant};

/// Consecutive failures that open it. A few failures can be one short interruption.
pub(super) const FAILURES: u32 = 5;

/// How long it stays open before one call is tried. Recovery is noticed within this time plus the call's deadline.
const PAUSE: Duration = Duration::from_millis(500);

/// Whether calls are made.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    /// Set while it is open: when the next call may be tried.
    retry_at: Option<Instant>,
}

impl Breaker {
    /// Whether a call may be made now. While it is open, one call in each pause is admitted as a probe. A probe that
    /// reports no outcome is followed by the next one.
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        let admits = !self.is_open(now);
        if admits && self.retry_at.is_some() {
            self.retry_at = Some(now + PAUSE);
        }
        admits
    }

    /// Admits one call at once: there are signs that the dependency answers again.
    pub(super) fn end_pause(&mut self, now: Instant) {
        if let Some(retry_at) = &mut self.retry_at {
            *retry_at = now;
        }
    }

    /// Whether it rejects calls now.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.retry_at.is_some_and(|retry_at| now < retry_at)
    }

    /// Takes the outcome of a call into account.
    pub(super) fn record(&mut self, answered: bool, now: Instant) {
        if answered {
            *self = Self::default();
            return;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES {
            self.retry_at = Some(now + PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        (0..FAILURES).for_each(|_| breaker.record(false, now));
        breaker
    }

    #[test]
    fn opens_after_failures_in_a_row_and_not_before() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..3 {
            (1..FAILURES).for_each(|_| breaker.record(false, now));
            assert!(breaker.admits(now));
            breaker.record(true, now);
        }
        assert!(!open(now).admits(now));
    }

    #[test]
    fn open_breaker_admits_one_call_in_each_pause() {
        let now = Instant::now();
        let mut breaker = open(now);
        let later = now + PAUSE;
        assert_eq!((breaker.admits(later), breaker.admits(later)), (true, false));
        assert!(breaker.admits(later + PAUSE), "the first reported no outcome");
    }

    #[test]
    fn end_of_a_pause_admits_one_call_and_closes_nothing() {
        let now = Instant::now();
        let mut breaker = open(now);
        breaker.end_pause(now);
        assert_eq!((breaker.admits(now), breaker.admits(now)), (true, false));
        let mut closed = Breaker::default();
        closed.end_pause(now);
        assert!(closed.admits(now) && closed.admits(now));
    }

    #[test]
    fn one_answer_closes_it_and_one_failure_keeps_it_open() {
        let now = Instant::now();
        let mut breaker = open(now);
        assert!(breaker.admits(now + PAUSE));
        breaker.record(false, now + PAUSE);
        assert!(!breaker.admits(now + PAUSE));
        breaker.record(true, now + PAUSE);
        assert!(breaker.admits(now + PAUSE) && breaker.admits(now + PAUSE));
    }
}
