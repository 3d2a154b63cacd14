//! Detects rejected attempts and limits how often they are logged. Pure: the time is passed in.

use std::time::{Duration, Instant};

use ipnet::IpNet;

/// Attempts that were rejected since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Rejections {
    pub(super) count: u64,
    /// The site of the last rejected attempt. `None` if Envoy vouches for no address.
    pub(super) network: Option<IpNet>,
}

/// Decides when a flood is logged.
#[derive(Debug, Default)]
pub(super) struct FloodWatch {
    reported: u64,
    reported_at: Option<Instant>,
}

/// Minimum time between two reports.
const PAUSE: Duration = Duration::from_secs(60);

impl FloodWatch {
    /// The attempts rejected since the last report. `None` if no report is due.
    pub(super) fn look(&mut self, rejections: Rejections, now: Instant) -> Option<Rejections> {
        let count = rejections.count - self.reported;
        let paused = self.reported_at.is_none_or(|at| now.saturating_duration_since(at) >= PAUSE);
        if count == 0 || !paused {
            return None;
        }
        (self.reported, self.reported_at) = (rejections.count, Some(now));
        Some(Rejections { count, ..rejections })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_is_reported_once_a_minute() {
        let (mut watch, now) = (FloodWatch::default(), Instant::now());
        let mut look = |count, seconds| {
            let rejections = Rejections { count, network: None };
            watch.look(rejections, now + Duration::from_secs(seconds)).map(|report| report.count)
        };
        assert_eq!(look(0, 0), None);
        assert_eq!(look(1, 1), Some(1));
        assert_eq!(look(500, 60), None);
        assert_eq!(look(600, 61), Some(599));
        assert_eq!(look(600, 200), None, "it is over");
    }
}
