//! Whether Redis counts at present.
//!
//! After an outage, instances continue with their parts for a short time, until each has reported to Redis what it
//! allowed during the outage. This time is the recovery.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tracing::debug;

use super::membership::SILENCE;

/// Whether Redis counts at present.
pub(super) struct Availability {
    start: Instant,
    /// When Redis counts again, in milliseconds since the start.
    counts_from: AtomicU64,
    /// When the recovery stops to wait for other instances, in milliseconds since the start.
    waits_until: AtomicU64,
    recovery: Duration,
}

/// The state in which Redis answers a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RedisState {
    /// It answers for the first time.
    First,
    /// It knows this instance.
    Intact,
    /// It does not know this instance any more: it was flushed or restarted.
    Reset,
}

const LOST: u64 = u64::MAX;

impl Availability {
    /// Redis counts until a call fails.
    pub(super) fn new(recovery: Duration, now: Instant) -> Self {
        Self { start: now, counts_from: AtomicU64::new(0), waits_until: AtomicU64::new(0), recovery }
    }

    pub(super) fn is_up(&self, now: Instant) -> bool {
        self.counts_from.load(Ordering::Relaxed) <= self.millis(now)
    }

    /// Records that Redis did not answer.
    pub(super) fn mark_lost(&self) {
        self.counts_from.store(LOST, Ordering::Relaxed);
    }

    /// Records that Redis answered. Returns whether all use has to be reported to it.
    pub(super) fn mark_found(&self, state: RedisState, now: Instant) -> bool {
        let was_lost = self.counts_from.load(Ordering::Relaxed) == LOST;
        if !was_lost && state != RedisState::Reset {
            return false;
        }
        let recovery = if state == RedisState::First { Duration::ZERO } else { self.recovery };
        self.counts_from.store(self.millis(now + recovery), Ordering::Relaxed);
        self.waits_until.store(self.millis(now + SILENCE), Ordering::Relaxed);
        debug!(?state, ?recovery, "instances continue with their parts until the recovery ends");
        true
    }

    /// Extends a recovery that has not ended, because not every instance is back. It ends at the latest when an
    /// instance that is not back counts as gone.
    pub(super) fn extend_recovery(&self, now: Instant) {
        let until = self.millis(now + self.recovery).min(self.waits_until.load(Ordering::Relaxed));
        if !self.is_up(now) {
            self.counts_from.fetch_max(until, Ordering::Relaxed);
        }
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(LOST - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_waits_for_other_instances_and_ends() {
        let now = Instant::now();
        let availability = Availability::new(Duration::from_secs(3), now);
        let after = |seconds| now + Duration::from_secs(seconds);
        availability.mark_lost();
        assert!(!availability.is_up(after(60)));
        assert!(availability.mark_found(RedisState::Intact, now));
        for second in 1..10 {
            assert!(!availability.is_up(after(second)), "{second}");
            availability.extend_recovery(after(second));
        }
        assert!(availability.is_up(after(SILENCE.as_secs())));
        // Once Redis counts, no instance is waited for.
        availability.extend_recovery(after(11));
        assert!(availability.is_up(after(11)) && !availability.mark_found(RedisState::Intact, after(12)));
    }

    #[test]
    fn recovery_without_other_instances_ends_by_itself() {
        let now = Instant::now();
        let availability = Availability::new(Duration::from_secs(3), now);
        assert!(availability.mark_found(RedisState::Reset, now));
        let is_up = |seconds| availability.is_up(now + Duration::from_secs(seconds));
        assert!(!is_up(2) && is_up(3));
    }
}
