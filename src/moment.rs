//! One reading of the clocks, taken when a check arrives and passed to whatever needs the time.

use std::time::Instant;

use time::OffsetDateTime;

/// Now, on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Wall-clock time, for what people wrote down: expiry, locks.
    pub wall: OffsetDateTime,
    /// Monotonic time, for ages and deadlines.
    pub monotonic: Instant,
}

impl Moment {
    /// Reads both clocks.
    pub fn now() -> Self {
        Self { wall: OffsetDateTime::now_utc(), monotonic: Instant::now() }
    }
}
