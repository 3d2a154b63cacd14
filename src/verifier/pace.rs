//! Estimates the current duration of bcrypt on this machine from recent computations. Pure.

use std::time::Duration;

use super::recent::Recent;

/// The duration of a computation, by cost.
///
/// Simulated computations take this long, and a real mismatch is not reported earlier. So nearly every real computation
/// must finish within this time: a caller could distinguish a slower one from a simulated one.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Recent computations, in seconds per round. The number of rounds is two to the power of the cost.
    per_round: Recent,
}

/// Factor on the slowest recent computation, outliers excluded.
const MARGIN: f64 = 1.1;
/// Seconds per round before the first computation. The value of an ordinary machine: 60 ms at cost 10.
const ORDINARY: f64 = 60e-6;

impl Pace {
    /// Adds the duration of one computation.
    pub(super) fn learn(&mut self, cost: u32, took: Duration) {
        self.per_round.push(took.as_secs_f64() / rounds(cost));
    }

    /// A time within which nearly every computation of this cost finishes.
    pub(super) fn duration(&self, cost: u32) -> Duration {
        let seconds = self.per_round.slowest().map_or(ORDINARY, |slowest| slowest * MARGIN);
        Duration::from_secs_f64(seconds * rounds(cost))
    }
}

fn rounds(cost: u32) -> f64 {
    f64::from(1_u32 << cost.min(31))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verifier::recent::RECENT;

    #[test]
    fn cheap_computations_tell_how_long_dear_ones_take() {
        let mut pace = Pace::default();
        pace.learn(4, Duration::from_millis(1));
        let expected = Duration::from_millis(64).mul_f64(MARGIN);
        assert!(pace.duration(10).abs_diff(expected) < Duration::from_micros(1), "{:?}", pace.duration(10));
    }

    #[test]
    fn slow_ones_are_covered_and_a_machine_that_stood_still_is_forgotten() {
        let mut pace = Pace::default();
        for n in 0..RECENT as u64 {
            pace.learn(10, Duration::from_millis(60 + n % 20));
        }
        assert!(pace.duration(10) >= Duration::from_millis(79));
        pace.learn(10, Duration::from_secs(30));
        assert!(pace.duration(10) < Duration::from_millis(100));
        for _ in 0..RECENT {
            pace.learn(10, Duration::from_millis(200));
        }
        assert!(pace.duration(10) >= Duration::from_millis(200), "a machine that became slower");
    }
}
