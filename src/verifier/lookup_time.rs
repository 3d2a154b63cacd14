//! Estimates the current duration of look-ups outside memory. Pure.

use std::time::Duration;

use super::recent::Recent;

/// The time from the arrival of a check until its records are available, for records that were not in memory.
///
/// Refusals are delayed by this time, so that response times do not reveal whether a prefix was in memory.
#[derive(Debug, Default)]
pub(super) struct LookupTime(Recent);

/// Factor on the slowest recent look-up.
const MARGIN: f64 = 1.25;

/// Maximum delay of a refusal. A database that became slow must not fill the queue.
const MAX: Duration = Duration::from_millis(100);

impl LookupTime {
    /// Adds the duration of one look-up.
    pub(super) fn learn(&mut self, took: Duration) {
        self.0.push(took.min(MAX).as_secs_f64());
    }

    /// A time within which nearly every look-up finishes. Zero before the first look-up.
    pub(super) fn duration(&self) -> Duration {
        let slowest = self.0.slowest().unwrap_or(0.0);
        Duration::from_secs_f64(slowest * MARGIN).min(MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_look_ups_are_covered_and_slow_ones_are_bounded() {
        let mut time = LookupTime::default();
        assert_eq!(time.duration(), Duration::ZERO);
        (0..100).for_each(|n| time.learn(Duration::from_micros(200 + n)));
        assert!(time.duration() > Duration::from_micros(299) && time.duration() < Duration::from_micros(400));
        (0..100).for_each(|_| time.learn(Duration::from_secs(2)));
        assert_eq!(time.duration(), MAX);
    }
}
