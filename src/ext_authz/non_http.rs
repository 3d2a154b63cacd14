//! Reports connections that are not HTTP: a warning for each port, at most once a minute.
//!
//! Such a connection is closed without a word to its client, so the log is the only place that can name the cause.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tracing::warn;

use super::proto::check_request::destination_port;

/// The ports that connections were denied to.
#[derive(Default)]
pub(super) struct NonHttpLog(Mutex<BTreeMap<Option<u32>, PortLog>>);

/// The connections to one port.
struct PortLog {
    warned: Instant,
    /// Denied since the last warning.
    denied: u64,
}

/// Maximum number of ports with warnings of their own. All further ones share a warning without a port.
const MAX_PORTS: usize = 16;
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

impl NonHttpLog {
    /// Reports a denied connection.
    pub(super) fn note(&self, message: &[u8], client: Option<IpAddr>, now: Instant) {
        if let Some((port, denied)) = self.count(destination_port(message), now) {
            warn!(
                port,
                client = client.map(tracing::field::display),
                denied,
                "Envoy asks about connections that are not HTTP, and Keystile denies them: its policy covers this \
                 port; exclude the port"
            );
        }
    }

    /// Counts a connection. Returns the port to warn of, and the number of connections since its last warning.
    fn count(&self, port: Option<u32>, now: Instant) -> Option<(Option<u32>, u64)> {
        let mut ports = self.0.lock();
        let port = if ports.contains_key(&port) || ports.len() < MAX_PORTS { port } else { None };
        let Some(log) = ports.get_mut(&port) else {
            ports.insert(port, PortLog { warned: now, denied: 0 });
            return Some((port, 1));
        };
        log.denied += 1;
        if now.saturating_duration_since(log.warned) < WARNING_INTERVAL {
            return None;
        }
        log.warned = now;
        Some((port, std::mem::take(&mut log.denied)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_is_warned_of_once_a_minute_with_the_number_of_connections() {
        let (log, now) = (NonHttpLog::default(), Instant::now());
        let later = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(log.count(Some(9192), now), Some((Some(9192), 1)));
        assert_eq!(log.count(Some(5432), later(1)), Some((Some(5432), 1)));
        assert_eq!((2..60).filter_map(|second| log.count(Some(9192), later(second))).count(), 0);
        assert_eq!(log.count(Some(9192), later(60)), Some((Some(9192), 59)));
        assert_eq!(log.count(Some(9192), later(119)), None);
    }

    #[test]
    fn many_ports_share_one_warning() {
        let (log, now) = (NonHttpLog::default(), Instant::now());
        let warned: Vec<_> = (0..1000).filter_map(|port| log.count(Some(port), now)).collect();
        assert_eq!(warned.len(), MAX_PORTS + 1);
        assert_eq!(warned.last(), Some(&(None, 1)));
    }
}
