//! Whether this process can answer checks: one state, told over HTTP and gRPC alike.

use std::sync::Arc;

use tokio::sync::watch;

/// The state of the process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Health(Arc<watch::Sender<State>>);

/// What the process is up to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The database has not answered yet; says why, once that is known.
    Starting(Option<String>),
    /// Answering. A database lost later does not change that: what memory holds goes on, and
    /// taking every sidecar out of service would turn a partial outage into a whole one.
    Ready {
        /// Why the database does not answer at the moment.
        degraded: Option<String>,
    },
    /// Asked to stop: no new checks, please.
    Draining,
}

impl Health {
    /// A process that is starting.
    pub fn starting() -> Self {
        Self(Arc::new(watch::Sender::new(State::Starting(None))))
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
        self.0.send_if_modified(|state| {
            let next = match (&*state, problem) {
                (State::Draining, _) => State::Draining,
                (State::Starting(_), Some(problem)) => State::Starting(Some(problem)),
                (_, problem) => State::Ready { degraded: problem },
            };
            let modified = *state != next;
            *state = next;
            modified
        });
    }

    /// From now on the process is stopping.
    pub fn drain(&self) {
        self.0.send_replace(State::Draining);
    }
}

impl State {
    /// Whether Envoy should send checks here.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready { .. })
    }

    /// One word for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting(_) => "starting",
            Self::Ready { degraded: None } => "ready",
            Self::Ready { degraded: Some(_) } => "degraded",
            Self::Draining => "draining",
        }
    }

    /// What is wrong with the database, if anything is.
    pub fn problem(&self) -> Option<&str> {
        match self {
            Self::Starting(problem) | Self::Ready { degraded: problem } => problem.as_deref(),
            Self::Draining => None,
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
        assert_eq!((health.state().is_ready(), health.state().problem()), (false, Some("refused")));
        health.database_answered(None);
        assert_eq!(health.state().name(), "ready");
        health.database_answered(Some("refused".into()));
        assert_eq!((health.state().is_ready(), health.state().name()), (true, "degraded"));
    }

    #[test]
    fn draining_is_for_good() {
        let health = Health::starting();
        health.drain();
        health.database_answered(None);
        assert_eq!(health.state(), State::Draining);
    }
}
