//! Redis' clock, which all instances use to number windows.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::{clock::Timestamps, limiter::counts::since_epoch};

/// Redis' clock, continued from the last reading by this machine's monotonic clock.
pub(super) struct RedisClock {
    start: Instant,
    /// The time of Redis' clock at `start`, in microseconds since 1970.
    at_start: AtomicU64,
}

impl RedisClock {
    /// Shows this machine's time until the first reading.
    pub(super) fn new(now: Timestamps) -> Self {
        let clock = Self { start: now.monotonic, at_start: AtomicU64::new(0) };
        clock.set(since_epoch(now), now.monotonic);
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
