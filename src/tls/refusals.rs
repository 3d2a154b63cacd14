//! The log of failed handshakes. Anyone who reaches the port can cause them, so the log has a limit.

use std::{
    io,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustls::{CertificateError, OtherError};
use tracing::{debug, warn};

/// Minimum time between two warnings.
const WARNING_INTERVAL: Duration = Duration::from_secs(5);

/// The failed handshakes of one listener.
pub(super) struct RefusalLog {
    pub(super) listener: &'static str,
    warned: Mutex<Option<Instant>>,
}

impl RefusalLog {
    pub(super) fn new(listener: &'static str) -> Self {
        Self { listener, warned: Mutex::default() }
    }

    /// Logs a failure. Connections that end without TLS, such as those of port scans and load balancers, are no failure.
    pub(super) fn log(&self, client: &str, error: &io::Error, now: Instant) {
        let listener = self.listener;
        let is_tls = error.get_ref().is_some_and(|error| error.is::<rustls::Error>());
        let mut warned = self.warned.lock();
        let is_due = warned.is_none_or(|warned| now.saturating_duration_since(warned) >= WARNING_INTERVAL);
        let error = reason(error);
        if is_tls && is_due {
            *warned = Some(now);
            warn!(listener, client, error, "a TLS handshake failed");
        } else {
            debug!(listener, client, error, "a TLS handshake failed");
        }
    }
}

/// The text of a failure. rustls shows the errors of other verifiers in their debug form.
fn reason(error: &io::Error) -> String {
    match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(other)))) => {
            other.to_string()
        }
        _ => error.to_string(),
    }
}
