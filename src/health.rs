//! Whether this process can answer checks: one state, told over HTTP and gRPC alike.

use std::sync::Arc;

use tokio::sync::watch;

/// The state of the process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Health(Arc<watch::Sender<State>>);

/// What the process is up to, and what is wrong with what it depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// What it is up to.
    pub phase: Phase,
    /// Why the database does not answer, once that is known.
    pub database: Option<String>,
    /// Why Redis does not, where there is to be one.
    pub redis: Option<String>,
}

/// What the process is up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The database has not answered yet, or not said what changed.
    Starting,
    /// Answering. A database lost later does not change that: what memory holds goes on, and
    /// taking every sidecar out of service would turn a partial outage into a whole one. Redis lost
    /// makes it slower, and nothing else.
    Ready,
    /// Asked to stop: no new checks, please.
    Draining,
}

impl Health {
    /// A process that is starting.
    pub fn starting() -> Self {
        Self(Arc::new(watch::Sender::new(State { phase: Phase::Starting, database: None, redis: None })))
    }

    /// The present state.
    pub fn state(&self) -> State {
        self.0.borrow().clone()
    }

    /// Resolves at the next change of state, with the new one; never after the last.
    pub fn changes(&self) -> watch::Receiver<State> {
        self.0.subscribe()
    }

    /// Takes the outcome of a call to the database into account.
    pub fn database_answered(&self, problem: Option<String>) {
        self.modify(|state| {
            if state.phase == Phase::Starting && problem.is_none() {
                state.phase = Phase::Ready;
            }
            state.database = problem;
        });
    }

    /// Takes the outcome of a call to Redis into account.
    pub fn redis_answered(&self, problem: Option<String>) {
        self.modify(|state| state.redis = problem);
    }

    /// From now on the process is stopping.
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

    /// One word for programs.
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
