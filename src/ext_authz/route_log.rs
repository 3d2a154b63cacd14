//! Logs each wrong setting of a route once, and again after a pause: every request to the route finds it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tracing::warn;

/// The wrong settings that were logged.
#[derive(Default)]
pub(super) struct RouteLog(Mutex<HashMap<String, Logged>>);

struct Logged {
    at: Instant,
    /// Requests since then.
    requests: u64,
}

/// Time until a setting is logged again.
const PAUSE: Duration = Duration::from_secs(600);

/// Maximum number of settings that are told apart. Envoy's configuration has few. Others wait until an entry is old.
const SETTINGS: usize = 64;

impl RouteLog {
    /// Logs the error of a request to this path, if it is due.
    pub(super) fn record(&self, error: &str, path: &str, now: Instant) {
        if let Some(requests) = self.due(error, now) {
            warn!(error, path, requests, "a route is misconfigured in Envoy: its requests are denied");
        }
    }

    /// The number of requests since the last line of this error, if a line is due.
    fn due(&self, error: &str, now: Instant) -> Option<u64> {
        let mut settings = self.0.lock();
        if let Some(logged) = settings.get_mut(error) {
            logged.requests += 1;
            if now.saturating_duration_since(logged.at) < PAUSE {
                return None;
            }
            logged.at = now;
            return Some(std::mem::take(&mut logged.requests));
        }
        if settings.len() >= SETTINGS {
            settings.retain(|_, logged| now.saturating_duration_since(logged.at) < PAUSE);
        }
        if settings.len() >= SETTINGS {
            return None;
        }
        settings.insert(error.to_owned(), Logged { at: now, requests: 0 });
        Some(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_is_logged_once_and_again_after_a_pause_with_its_requests() {
        let (log, start) = (RouteLog::default(), Instant::now());
        let due = |error: &str, seconds| log.due(error, start + Duration::from_secs(seconds));
        assert_eq!(due("keystile.scope: unknown", 0), Some(1));
        (1..50).for_each(|second| assert_eq!(due("keystile.scope: unknown", second), None));
        assert_eq!(due("keystile.mode: x", 3), Some(1));
        assert_eq!(due("keystile.scope: unknown", 600), Some(50));
        assert_eq!(due("keystile.scope: unknown", 601), None);
    }

    #[test]
    fn endless_settings_take_no_memory_without_end() {
        let (log, now) = (RouteLog::default(), Instant::now());
        let lines = (0..1000).filter(|n| log.due(&format!("setting {n}"), now).is_some()).count();
        assert_eq!((lines, log.0.lock().len()), (SETTINGS, SETTINGS));
        assert_eq!(log.due("later", now + PAUSE), Some(1));
    }
}
