//! Notices that attempts are turned away, and says so now and then. Pure: the time is passed in.

use std::time::{Duration, Instant};

use ipnet::IpNet;

/// Attempts that were turned away so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct TurnedAway {
    pub(super) count: u64,
    /// The site of the last one, where Envoy vouches for its address.
    pub(super) network: Option<IpNet>,
}

/// Decides when a flood is worth a line in the log.
#[derive(Debug, Default)]
pub(super) struct FloodWatch {
    reported: u64,
    reported_at: Option<Instant>,
}

/// How often at most.
const PAUSE: Duration = Duration::from_secs(60);

impl FloodWatch {
    /// How many were turned away since the last report, if a report is due.
    pub(super) fn look(&mut self, turned_away: TurnedAway, now: Instant) -> Option<TurnedAway> {
        let count = turned_away.count - self.reported;
        let paused = self.reported_at.is_none_or(|at| now.saturating_duration_since(at) >= PAUSE);
        if count == 0 || !paused {
            return None;
        }
        (self.reported, self.reported_at) = (turned_away.count, Some(now));
        Some(TurnedAway { count, ..turned_away })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_is_reported_once_a_minute() {
        let (mut watch, now) = (FloodWatch::default(), Instant::now());
        let mut look = |count, seconds| {
            let turned_away = TurnedAway { count, network: None };
            watch.look(turned_away, now + Duration::from_secs(seconds)).map(|report| report.count)
        };
        assert_eq!(look(0, 0), None);
        assert_eq!(look(1, 1), Some(1));
        assert_eq!(look(500, 60), None);
        assert_eq!(look(600, 61), Some(599));
        assert_eq!(look(600, 200), None, "it is over");
    }
}
