//! Whether this process can answer checks. HTTP and gRPC report the same state.

use std::sync::Arc;

use tokio::sync::watch;

/// The state of the process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Health(Arc<watch::Sender<State>>);

/// The phase of the process, and the problems of its dependencies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The phase of the process.
    pub phase: Phase,
    /// The reason why the database does not answer. `None` if there is no known problem.
    pub database: Option<String>,
    /// The reason why Redis does not answer, if Redis is configured. `None` if there is no known problem.
    pub redis: Option<String>,
}

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
        Self(Arc::new(watch::Sender::new(State { phase: Phase::Starting, database: None, redis: None })))
    }

    /// The current state.
    pub fn state(&self) -> State {
        self.0.borrow().clone()
    }

    /// A receiver that resolves with the new state at each change. After the last change, it never resolves.
    pub fn changes(&self) -> watch::Receiver<State> {
        self.0.subscribe()
    }

    /// Records the outcome of a call to the database. `None` means success.
    pub fn database_answered(&self, problem: Option<String>) {
        self.modify(|state| {
            if state.phase == Phase::Starting && problem.is_none() {
                state.phase = Phase::Ready;
            }
            state.database = problem;
        });
    }

    /// Records the outcome of a call to Redis. `None` means success.
    pub fn redis_answered(&self, problem: Option<String>) {
        self.modify(|state| state.redis = problem);
    }

    /// Sets the phase to [`Phase::Draining`].
    pub fn drain(&self) {
        self.modify(|state| state.phase = Phase::Draining);
    }

    fn modify(&self, change: impl FnOnce(&mut State)) {
        self.0.send_if_modified(|state| {
            let before = state.clone();
            change(state);
            *state != before
        });
    }
}

impl State {
    /// Whether Envoy should send checks here.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// The machine-readable name of the state.
    pub fn name(&self) -> &'static str {
        match self.phase {
            Phase::Starting => "starting",
            Phase::Ready if self.database.is_some() || self.redis.is_some() => "degraded",
            Phase::Ready => "ready",
            Phase::Draining => "draining",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_once_the_database_has_answered_and_from_then_on() {
        let health = Health::starting();
        assert!(!health.state().is_ready());
        health.database_answered(Some("refused".into()));
        assert_eq!((health.state().is_ready(), health.state().database), (false, Some("refused".into())));
        health.database_answered(None);
        assert_eq!(health.state().name(), "ready");
        health.database_answered(Some("refused".into()));
        assert_eq!((health.state().is_ready(), health.state().name()), (true, "degraded"));
    }

    #[test]
    fn redis_is_not_waited_for_and_its_loss_is_told() {
        let health = Health::starting();
        health.redis_answered(None);
        assert!(!health.state().is_ready());
        health.redis_answered(Some("refused".into()));
        health.database_answered(None);
        assert_eq!((health.state().is_ready(), health.state().name()), (true, "degraded"));
    }

    #[test]
    fn draining_is_for_good() {
        let health = Health::starting();
        health.drain();
        health.database_answered(None);
        assert_eq!(health.state().name(), "draining");
    }
}
