//! Whether this process can answer checks. HTTP and gRPC report the same phase.

use std::sync::Arc;

use tokio::sync::watch;

/// The phase of the process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Health(Arc<watch::Sender<Phase>>);

/// The phase of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The database has not answered yet, or the change log was not read yet.
    Starting,
    /// The process answers checks. A later loss of the database does not change the phase: keys in memory continue to
    /// work, and taking every instance out of service would turn a partial outage into a complete one. A loss of Redis
    /// only makes checks slower.
    Ready,
    /// The process is stopping. It should receive no new checks.
    Draining,
}

impl Health {
    /// A process that is starting.
    pub fn starting() -> Self {
        Self(Arc::new(watch::Sender::new(Phase::Starting)))
    }

    /// The current phase.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// A receiver that resolves with the new phase at each change. After the last change, it never resolves.
    pub fn changes(&self) -> watch::Receiver<Phase> {
        self.0.subscribe()
    }

    /// The database has answered a look-up. From now on the process is ready.
    pub fn database_answered(&self) {
        self.0.send_if_modified(|phase| {
            let was_starting = *phase == Phase::Starting;
            if was_starting {
                *phase = Phase::Ready;
            }
            was_starting
        });
    }

    /// Sets the phase to [`Phase::Draining`].
    pub fn drain(&self) {
        self.0.send_replace(Phase::Draining);
    }
}

impl Phase {
    /// Whether Envoy should send checks here.
    pub fn is_ready(self) -> bool {
        self == Self::Ready
    }

    /// The machine-readable name of the state. `has_fault`: whether a dependency does not work.
    pub fn name(self, has_fault: bool) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready if has_fault => "degraded",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_once_the_database_has_answered_and_from_then_on() {
        let health = Health::starting();
        assert!(!health.phase().is_ready());
        assert_eq!(health.phase().name(true), "starting");
        health.database_answered();
        assert_eq!((health.phase().name(false), health.phase().name(true)), ("ready", "degraded"));
    }

    #[test]
    fn draining_is_for_good() {
        let health = Health::starting();
        health.drain();
        health.database_answered();
        assert_eq!(health.phase().name(false), "draining");
    }
}
