//! Stands before every call to a dependency: a bound on how many wait, a turn, a deadline, and a breaker.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use metrics::{Counter, Gauge, Histogram};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use crate::{metrics::Metrics, mutex::lock};

mod breaker;

use breaker::Breaker;

/// Guards one dependency.
pub struct Gate {
    limit: Duration,
    /// For all who wait or call.
    places: Semaphore,
    /// For those who call.
    turns: Semaphore,
    breaker: Mutex<Breaker>,
    /// What went wrong last, for those who are turned away.
    last: Mutex<Arc<str>>,
    errors: Counter,
    up: Gauge,
}

/// Why a call was not made, or not waited for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Turned {
    /// No answer within the deadline.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Late(Duration),
    /// As many calls as may be are under way, and have been for as long as was waited.
    #[error("too many calls are under way")]
    Full,
    /// The last calls failed; the next is made a moment later.
    #[error("not asked again yet, after: {0}")]
    Open(Arc<str>),
}

/// What a guarded call may end in.
pub trait CallError: From<Turned> + std::fmt::Display {
    /// Whether it means that nobody answers, rather than that the answer is no.
    fn is_outage(&self) -> bool;
}

/// Most calls under way and waiting: what a dependency that hangs can keep busy. With the first proofs that may wait,
/// well below the 1,024 requests that Envoy's circuit breaker lets through to a cluster.
pub const PLACES: usize = 256;

impl Gate {
    /// A gate before the dependency that metrics call `store`. So many calls are made `at_once`, and each may take
    /// `limit`, as may the wait for its turn.
    pub fn new(store: &'static str, limit: Duration, at_once: usize, metrics: &Metrics) -> Self {
        Self {
            limit,
            places: Semaphore::new(PLACES),
            turns: Semaphore::new(at_once),
            breaker: Mutex::default(),
            last: Mutex::new("".into()),
            errors: metrics.store_errors(store),
            up: metrics.store_up(store),
        }
    }

    /// Makes a call, if there is a place and the breaker lets it, and waits for it until the deadline. Who waits for
    /// a turn in vain has learned nothing about the dependency: it may be well, and asked too much.
    ///
    /// # Errors
    /// The call's own, or [`Turned`].
    pub async fn call<T, E: CallError>(
        &self,
        duration: &Histogram,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let Ok(_place) = self.places.try_acquire() else { return Err(self.full().into()) };
        if !lock(&self.breaker).admits(Instant::now()) {
            return Err(self.open().into());
        }
        let _turn = match self.turns.try_acquire() {
            Ok(turn) => turn,
            Err(_) => self.wait_for_turn().await?,
        };
        let started = Instant::now();
        let result = timeout(self.limit, call).await.unwrap_or_else(|_| Err(Turned::Late(self.limit).into()));
        duration.record(started.elapsed());
        self.learn(result.as_ref().err());
        result
    }

    /// A turn for a call that is not to be cut short.
    pub async fn turn(&self) -> SemaphorePermit<'_> {
        self.turns.acquire().await.expect("never closed")
    }

    /// Calls that may still be made, or wait, at the same time.
    pub fn places(&self) -> usize {
        self.places.available_permits()
    }

    async fn wait_for_turn(&self) -> Result<SemaphorePermit<'_>, Turned> {
        let turn = timeout(self.limit, self.turn()).await;
        // By those who were before.
        if lock(&self.breaker).is_open(Instant::now()) {
            return Err(self.open());
        }
        turn.map_err(|_| self.full())
    }

    fn open(&self) -> Turned {
        Turned::Open(lock(&self.last).clone())
    }

    fn full(&self) -> Turned {
        self.errors.increment(1);
        Turned::Full
    }

    fn learn<E: CallError>(&self, error: Option<&E>) {
        let outage = error.is_some_and(E::is_outage);
        lock(&self.breaker).learn(!outage, Instant::now());
        self.up.set(if error.is_none() { 1.0 } else { 0.0 });
        if let Some(error) = error {
            self.errors.increment(1);
            *lock(&self.last) = error.to_string().into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, thiserror::Error)]
    enum Failed {
        #[error(transparent)]
        Turned(#[from] Turned),
        #[error("nobody there")]
        Down,
        #[error("no")]
        No,
    }

    impl CallError for Failed {
        fn is_outage(&self) -> bool {
            *self != Self::No
        }
    }

    struct Bench {
        gate: Gate,
        duration: Histogram,
    }

    impl Bench {
        fn new(limit: Duration) -> Self {
            Self::with(limit, PLACES)
        }

        fn with(limit: Duration, at_once: usize) -> Self {
            let metrics = Metrics::new().expect("builds");
            Self {
                gate: Gate::new("postgres", limit, at_once, &metrics),
                duration: metrics.store_duration("postgres", "records"),
            }
        }

        async fn call(&self, answer: Result<u8, Failed>) -> Result<u8, Failed> {
            self.gate.call(&self.duration, async { answer }).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn late_answer_is_not_waited_for() {
        let bench = Bench::new(Duration::from_millis(50));
        let late = bench.gate.call(&bench.duration, std::future::pending::<Result<u8, Failed>>()).await;
        assert_eq!(late, Err(Turned::Late(Duration::from_millis(50)).into()));
    }

    #[tokio::test]
    async fn failures_in_a_row_open_the_breaker_and_are_told() {
        let bench = Bench::new(Duration::from_secs(1));
        for _ in 0..breaker::FAILURES {
            assert_eq!(bench.call(Err(Failed::Down)).await, Err(Failed::Down));
        }
        assert_eq!(bench.call(Ok(1)).await, Err(Turned::Open("nobody there".into()).into()));
    }

    #[tokio::test]
    async fn refusal_is_no_outage() {
        let bench = Bench::new(Duration::from_secs(1));
        for _ in 0..10 * breaker::FAILURES {
            assert_eq!(bench.call(Err(Failed::No)).await, Err(Failed::No));
        }
        assert_eq!(bench.call(Ok(1)).await, Ok(1));
    }

    #[tokio::test]
    async fn calls_beyond_the_bound_are_turned_away_at_once() {
        let bench = Bench::new(Duration::from_secs(60));
        let hang = || bench.gate.call(&bench.duration, std::future::pending::<Result<u8, Failed>>());
        let mut hanging: Vec<_> = (0..PLACES).map(|_| Box::pin(hang())).collect();
        for call in &mut hanging {
            assert!(futures_util::poll!(call).is_pending());
        }
        assert_eq!(bench.call(Ok(1)).await, Err(Turned::Full.into()));
        hanging.pop();
        assert_eq!(bench.call(Ok(1)).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_a_turn_in_vain_says_nothing_about_the_dependency() {
        let bench = Bench::with(Duration::from_millis(50), 1);
        let held = bench.gate.turn().await;
        for _ in 0..2 * breaker::FAILURES {
            assert_eq!(bench.call(Ok(1)).await, Err(Turned::Full.into()));
        }
        drop(held);
        assert_eq!(bench.call(Ok(1)).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waited_behind_failures_is_told_of_them() {
        let bench = Bench::with(Duration::from_millis(50), breaker::FAILURES as usize);
        let hang = || bench.gate.call(&bench.duration, std::future::pending::<Result<u8, Failed>>());
        let hanging = (0..2 * breaker::FAILURES).map(|_| hang());
        let answers = futures_util::future::join_all(hanging).await;
        let (first, behind) = answers.split_at(breaker::FAILURES as usize);
        assert!(first.iter().all(|answer| *answer == Err(Turned::Late(Duration::from_millis(50)).into())));
        let open = |answer: &Result<u8, Failed>| matches!(answer, Err(Failed::Turned(Turned::Open(_))));
        assert!(behind.iter().all(open), "{behind:?}");
    }
}
