//! Stops asking who does not answer, and tries again soon. Pure: the time is passed in.

use std::time::{Duration, Instant};

/// Failures in a row that open it: fewer could be one unlucky moment.
pub(super) const FAILURES: u32 = 5;

/// How long it stays open before one call tries again. Short, because an answer that comes late is worth
/// less than one that comes: recovery is noticed within this and the call's own deadline.
const PAUSE: Duration = Duration::from_millis(500);

/// Whether calls are made.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    /// Set while it is open: when the next call may be tried.
    retry_at: Option<Instant>,
}

impl Breaker {
    /// Whether a call may be made now. While open, one call a pause: whoever is let through decides,
    /// and if they never say how it went, the next one does.
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        let admits = !self.is_open(now);
        if admits && self.retry_at.is_some() {
            self.retry_at = Some(now + PAUSE);
        }
        admits
    }

    /// Whether nobody is let through now.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.retry_at.is_some_and(|retry_at| now < retry_at)
    }

    /// Takes the outcome of a call into account.
    pub(super) fn learn(&mut self, answered: bool, now: Instant) {
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
        (0..FAILURES).for_each(|_| breaker.learn(false, now));
        breaker
    }

    #[test]
    fn opens_after_failures_in_a_row_and_not_before() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..3 {
            (1..FAILURES).for_each(|_| breaker.learn(false, now));
            assert!(breaker.admits(now));
            breaker.learn(true, now);
        }
        assert!(!open(now).admits(now));
    }

    #[test]
    fn lets_one_call_through_a_pause() {
        let now = Instant::now();
        let mut breaker = open(now);
        let later = now + PAUSE;
        assert_eq!((breaker.admits(later), breaker.admits(later)), (true, false));
        assert!(breaker.admits(later + PAUSE), "the first never said how it went");
    }

    #[test]
    fn one_answer_closes_it_and_one_failure_keeps_it_open() {
        let now = Instant::now();
        let mut breaker = open(now);
        assert!(breaker.admits(now + PAUSE));
        breaker.learn(false, now + PAUSE);
        assert!(!breaker.admits(now + PAUSE));
        breaker.learn(true, now + PAUSE);
        assert!(breaker.admits(now + PAUSE) && breaker.admits(now + PAUSE));
    }
}
