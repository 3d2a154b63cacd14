//! What a sidecar knows of Redis and of the other sidecars.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tracing::{info, warn};

use crate::{limiter::lease::Fleet, moment::Moment, redis::RedisError};

/// Whether Redis counts at the moment.
///
/// After an outage, sidecars go on with their parts for a moment, until each has told Redis what it let
/// through meanwhile.
pub(super) struct Link {
    start: Instant,
    /// Since the start, in milliseconds: from when on Redis counts.
    counts_from: AtomicU64,
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
        Self { start: Instant::now(), counts_from: AtomicU64::new(0), settling }
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
        info!(?found, ?settling, store = "redis", "rate limits are counted by Redis");
        true
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(LOST - 1)
    }
}

impl Clock {
    /// This machine's clock, until Redis's is heard.
    pub(super) fn new() -> Self {
        let Moment { monotonic, .. } = Moment::now();
        let clock = Self { start: monotonic, at_start: AtomicU64::new(0) };
        clock.set(crate::limiter::counts::since_epoch(Moment::now()), monotonic);
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
