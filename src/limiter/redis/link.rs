//! What a sidecar knows of Redis and of the other sidecars.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::script::SILENCE;
use crate::{
    clock::{self, Timestamps},
    limiter::lease::Fleet,
    redis::RedisError,
};

/// Whether Redis counts at the moment.
///
/// After an outage, sidecars go on with their parts for a moment, until each has told Redis what it let
/// through meanwhile.
pub(super) struct Link {
    start: Instant,
    /// Since the start, in milliseconds: from when on Redis counts.
    counts_from: AtomicU64,
    /// The same: until when others are waited for.
    waits_until: AtomicU64,
    settling: Duration,
}

/// How Redis was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// For the first time.
    First,
    /// As it was left.
    Again,
    /// It does not know this sidecar any more: it was flushed, or has started anew.
    Forgetful,
}

/// Redis's clock, which all sidecars go by, on from where it was heard last.
pub(super) struct Clock {
    start: Instant,
    /// What Redis's clock showed at the start, in microseconds since 1970.
    at_start: AtomicU64,
}

/// The other sidecars, as Redis told last.
#[derive(Default)]
pub(super) struct Others {
    /// 0 while nothing was told.
    count: AtomicU64,
    place: AtomicU64,
}

const LOST: u64 = u64::MAX;

impl Link {
    /// Redis is taken to count until it fails to.
    pub(super) fn new(settling: Duration) -> Self {
        Self {
            start: clock::monotonic(),
            counts_from: AtomicU64::new(0),
            waits_until: AtomicU64::new(0),
            settling,
        }
    }

    pub(super) fn is_up(&self, now: Instant) -> bool {
        self.counts_from.load(Ordering::Relaxed) <= self.millis(now)
    }

    pub(super) fn lose(&self, error: &RedisError) {
        if self.counts_from.swap(LOST, Ordering::Relaxed) != LOST {
            warn!(%error, store = "redis", "rate limits are no longer counted by Redis");
        }
    }

    /// Redis answers; whether it is to be told all that was used.
    pub(super) fn find(&self, found: Found, now: Instant) -> bool {
        let was_lost = self.counts_from.load(Ordering::Relaxed) == LOST;
        if !was_lost && found != Found::Forgetful {
            return false;
        }
        let settling = if found == Found::First { Duration::ZERO } else { self.settling };
        self.counts_from.store(self.millis(now + settling), Ordering::Relaxed);
        self.waits_until.store(self.millis(now + SILENCE), Ordering::Relaxed);
        info!(?found, ?settling, store = "redis", "rate limits are counted by Redis");
        true
    }

    /// Goes on settling, if it has not ended yet: not all that were there before are back. But not for
    /// longer than it takes for them to be taken for gone.
    pub(super) fn settle_on(&self, now: Instant) {
        let until = self.millis(now + self.settling).min(self.waits_until.load(Ordering::Relaxed));
        if !self.is_up(now) {
            self.counts_from.fetch_max(until, Ordering::Relaxed);
        }
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(LOST - 1)
    }
}

impl Clock {
    /// This machine's clock, until Redis's is heard.
    pub(super) fn new() -> Self {
        let Timestamps { monotonic, .. } = Timestamps::now();
        let clock = Self { start: monotonic, at_start: AtomicU64::new(0) };
        clock.set(crate::limiter::counts::since_epoch(Timestamps::now()), monotonic);
        clock
    }

    pub(super) fn set(&self, redis_now: Duration, now: Instant) {
        let at_start = redis_now.saturating_sub(now.saturating_duration_since(self.start));
        let micros = u64::try_from(at_start.as_micros()).unwrap_or(u64::MAX);
        self.at_start.store(micros, Ordering::Relaxed);
    }

    pub(super) fn now(&self, now: Instant) -> Duration {
        let at_start = Duration::from_micros(self.at_start.load(Ordering::Relaxed));
        at_start + now.saturating_duration_since(self.start)
    }
}

impl Others {
    pub(super) fn set(&self, fleet: Fleet) {
        self.place.store(fleet.place, Ordering::Relaxed);
        self.count.store(fleet.count, Ordering::Release);
    }

    pub(super) fn fleet(&self) -> Option<Fleet> {
        let count = self.count.load(Ordering::Acquire);
        (count > 0).then(|| Fleet { count, place: self.place.load(Ordering::Relaxed) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_an_outage_others_are_waited_for_and_not_for_ever() {
        let (link, now) = (Link::new(Duration::from_secs(3)), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        link.lose(&RedisError::Unavailable("as the test wants".into()));
        assert!(!link.is_up(after(60)));
        assert!(link.find(Found::Again, now));
        for second in 1..10 {
            assert!(!link.is_up(after(second)), "{second}");
            link.settle_on(after(second));
        }
        assert!(link.is_up(after(SILENCE.as_secs())));
        // Once it counts, nobody is waited for.
        link.settle_on(after(11));
        assert!(link.is_up(after(11)) && !link.find(Found::Again, after(12)));
    }

    #[test]
    fn without_others_settling_ends_by_itself() {
        let (link, now) = (Link::new(Duration::from_secs(3)), Instant::now());
        assert!(link.find(Found::Forgetful, now));
        assert!(!link.is_up(now + Duration::from_secs(2)) && link.is_up(now + Duration::from_secs(3)));
    }
}
