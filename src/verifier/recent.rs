//! The slowest of the last measurements. Pure.

use std::collections::VecDeque;

/// The last measurements of a time, in seconds.
#[derive(Debug, Default)]
pub(super) struct Recent {
    measurements: VecDeque<f64>,
    slowest: Option<f64>,
}

/// Measurements that are remembered.
pub(super) const RECENT: usize = 64;

/// Of these so many are ignored at the slow end: a machine that stood still for a moment is no measure.
const OUTLIERS: usize = 2;

impl Recent {
    /// Adds a measurement, and drops the oldest.
    pub(super) fn push(&mut self, seconds: f64) {
        if self.measurements.len() == RECENT {
            self.measurements.pop_front();
        }
        self.measurements.push_back(seconds);
        let mut sorted: Vec<_> = self.measurements.iter().copied().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        // Few are no sample: all of them count.
        let outliers = OUTLIERS * sorted.len() / RECENT;
        self.slowest = sorted.iter().rev().nth(outliers).copied();
    }

    /// The slowest measurement without outliers; none before the first.
    pub(super) fn slowest(&self) -> Option<f64> {
        self.slowest
    }
}
