//! The clocks. They are read here only; every decision is passed the time.
#![allow(clippy::disallowed_methods, reason = "the one place that reads them")]

use std::time::Instant;

use time::OffsetDateTime;

/// The time of both clocks, read once when a check arrives.
#[derive(Debug, Clone, Copy)]
pub struct Timestamps {
    /// Wall-clock time in UTC, for stored times: expiry, locks.
    pub wall: OffsetDateTime,
    /// Monotonic time, for ages and deadlines.
    pub monotonic: Instant,
}

impl Timestamps {
    /// Reads both clocks.
    pub fn now() -> Self {
        Self { wall: wall(), monotonic: monotonic() }
    }
}

/// The wall-clock time, in UTC. It can jump.
pub fn wall() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// The monotonic time.
pub fn monotonic() -> Instant {
    Instant::now()
}
