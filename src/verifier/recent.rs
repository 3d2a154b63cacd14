//! The slowest of the recent measurements. Pure.

use std::collections::VecDeque;

/// Recent measurements of a duration, in seconds.
#[derive(Debug, Default)]
pub(super) struct Recent {
    measurements: VecDeque<f64>,
    slowest: Option<f64>,
}

/// Maximum number of measurements.
pub(super) const RECENT: usize = 64;

/// Number of slowest measurements that are ignored, out of [`RECENT`]. They are outliers from short pauses of the
/// machine.
const OUTLIERS: usize = 2;

impl Recent {
    /// Adds a measurement. Drops the oldest if there are [`RECENT`] already.
    pub(super) fn push(&mut self, seconds: f64) {
        if self.measurements.len() == RECENT {
            self.measurements.pop_front();
        }
        self.measurements.push_back(seconds);
        let mut sorted: Vec<_> = self.measurements.iter().copied().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        // With few measurements, none is ignored.
        let outliers = OUTLIERS * sorted.len() / RECENT;
        self.slowest = sorted.iter().rev().nth(outliers).copied();
    }

    /// The slowest measurement, outliers excluded. `None` before the first measurement.
    pub(super) fn slowest(&self) -> Option<f64> {
        self.slowest
    }
}
