//! Guards every call to a dependency: a bounded queue, bounded concurrency, a deadline and a breaker.

use std::{future::Future, time::Duration};

use parking_lot::Mutex;

use metrics::{Counter, Gauge, Histogram};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::breaker::Breaker;
use crate::{
    clock,
    dependencies::{Cause, ErrorText},
    metrics::Metrics,
};

/// Guards one dependency.
pub struct DependencyGuard {
    timeout: Duration,
    /// Bounds the calls that wait or run.
    capacity: Semaphore,
    /// Bounds the calls that run.
    concurrency: Semaphore,
    limit: usize,
    breaker: Mutex<Breaker>,
    /// The last failure, for the text of [`Rejected::BreakerOpen`].
    last_error: Mutex<ErrorText>,
    errors: Counter,
    up: Gauge,
}

/// Why a call was not made, or not waited for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// No answer within the deadline.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// The maximum number of calls ran for the whole time that this one waited, or the queue was full.
    #[error("too many concurrent calls")]
    QueueFull,
    /// The last calls failed, and the pause before the next attempt has not passed.
    #[error("no new attempt yet after: {0}")]
    BreakerOpen(ErrorText),
}

/// The error of a guarded call.
pub trait CallError: From<Rejected> + std::fmt::Display {
    /// Whether the dependency did not answer. A refusal is an answer.
    fn is_outage(&self) -> bool;

    /// Why the call failed.
    fn cause(&self) -> Cause;
}

/// Maximum number of calls that run or wait: what a dependency that hangs can hold. Together with the first proofs
/// that may wait it is well below the 1,024 requests that Envoy's circuit breaker lets through to a cluster.
pub const CAPACITY: usize = 256;

impl DependencyGuard {
    /// Guards the dependency that metrics call `store`. At most `concurrency` calls run at the same time. Each may
    /// wait for `timeout`, and then run for `timeout`.
    pub fn new(store: &'static str, timeout: Duration, concurrency: usize, metrics: &Metrics) -> Self {
        Self {
            timeout,
            capacity: Semaphore::new(CAPACITY),
            concurrency: Semaphore::new(concurrency),
            limit: concurrency,
            breaker: Mutex::default(),
            last_error: Mutex::new("".into()),
            errors: metrics.store_errors(store),
            up: metrics.store_up(store),
        }
    }

    /// Makes a call, if the queue has room and the breaker admits it, and waits for it until the deadline. A queue
    /// timeout says nothing about the dependency's health and does not trip the breaker.
    ///
    /// # Errors
    /// The call's own, or [`Rejected`].
    pub async fn call<T, E: CallError>(
        &self,
        duration: &Histogram,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let Ok(_queued) = self.capacity.try_acquire() else { return Err(self.queue_full().into()) };
        if !self.breaker.lock().admits(clock::monotonic()) {
            return Err(self.breaker_open().into());
        }
        let _running = match self.concurrency.try_acquire() {
            Ok(permit) => permit,
            Err(_) => self.wait().await?,
        };
        let started = clock::monotonic();
        let result =
            timeout(self.timeout, call).await.unwrap_or_else(|_| Err(Rejected::Timeout(self.timeout).into()));
        duration.record(started.elapsed());
        self.record(result.as_ref().err());
        result
    }

    /// A permit for a call without a deadline. It counts against the concurrency.
    pub async fn permit(&self) -> SemaphorePermit<'_> {
        self.concurrency.acquire().await.expect("never closed")
    }

    /// Lets the next call through, although the breaker is open: there are signs that the dependency answers again.
    pub fn end_pause(&self) {
        self.breaker.lock().end_pause(clock::monotonic());
    }

    /// How many more calls may run or wait now.
    pub fn free_capacity(&self) -> usize {
        self.capacity.available_permits()
    }

    /// How many calls wait until another one has ended.
    pub fn waiting(&self) -> usize {
        let running = self.limit - self.concurrency.available_permits().min(self.limit);
        (CAPACITY - self.free_capacity()).saturating_sub(running)
    }

    async fn wait(&self) -> Result<SemaphorePermit<'_>, Rejected> {
        let permit = timeout(self.timeout, self.permit()).await;
        // The calls before this one may have opened it.
        if self.breaker.lock().is_open(clock::monotonic()) {
            return Err(self.breaker_open());
        }
        permit.map_err(|_| self.queue_full())
    }

    fn breaker_open(&self) -> Rejected {
        Rejected::BreakerOpen(self.last_error.lock().clone())
    }

    fn queue_full(&self) -> Rejected {
        self.errors.increment(1);
        Rejected::QueueFull
    }

    fn record<E: CallError>(&self, error: Option<&E>) {
        let outage = error.is_some_and(E::is_outage);
        self.breaker.lock().record(!outage, clock::monotonic());
        self.up.set(if error.is_none() { 1.0 } else { 0.0 });
        if let Some(error) = error {
            self.errors.increment(1);
            *self.last_error.lock() = ErrorText::new(error.cause(), error.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::breaker::FAILURES;

    #[derive(Debug, PartialEq, thiserror::Error)]
    enum Failed {
        #[error(transparent)]
        Rejected(#[from] Rejected),
        #[error("connection refused")]
        Down,
        #[error("no")]
        No,
    }

    impl CallError for Failed {
        fn is_outage(&self) -> bool {
            *self != Self::No
        }

        fn cause(&self) -> Cause {
            Cause::Unreachable
        }
    }

    struct Bench {
        guard: DependencyGuard,
        duration: Histogram,
    }

    impl Bench {
        fn new(timeout: Duration) -> Self {
            Self::with(timeout, CAPACITY)
        }

        fn with(timeout: Duration, concurrency: usize) -> Self {
            let metrics = Metrics::new().expect("builds");
            Self {
                guard: DependencyGuard::new("postgres", timeout, concurrency, &metrics),
                duration: metrics.store_duration("postgres", "records"),
            }
        }

        async fn call(&self, answer: Result<u8, Failed>) -> Result<u8, Failed> {
            self.guard.call(&self.duration, async { answer }).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn late_answer_is_not_waited_for() {
        let (bench, began) = (Bench::new(Duration::from_millis(50)), tokio::time::Instant::now());
        let late = bench.guard.call(&bench.duration, std::future::pending::<Result<u8, Failed>>()).await;
        assert_eq!(late, Err(Rejected::Timeout(Duration::from_millis(50)).into()));
        assert!(began.elapsed() < Duration::from_millis(60), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn failures_in_a_row_open_the_breaker_and_the_error_names_the_last() {
        let bench = Bench::new(Duration::from_secs(1));
        for _ in 0..FAILURES {
            assert_eq!(bench.call(Err(Failed::Down)).await, Err(Failed::Down));
        }
        assert_eq!(
            bench.call(Ok(1)).await,
            Err(Rejected::BreakerOpen(ErrorText::new(Cause::Unreachable, "connection refused")).into())
        );
    }

    #[tokio::test]
    async fn refusal_is_no_outage() {
        let bench = Bench::new(Duration::from_secs(1));
        for _ in 0..10 * FAILURES {
            assert_eq!(bench.call(Err(Failed::No)).await, Err(Failed::No));
        }
        assert_eq!(bench.call(Ok(1)).await, Ok(1));
    }

    #[tokio::test]
    async fn calls_beyond_the_capacity_are_rejected_at_once() {
        let bench = Bench::new(Duration::from_secs(60));
        let hang = || bench.guard.call(&bench.duration, std::future::pending::<Result<u8, Failed>>());
        let mut hanging: Vec<_> = (0..CAPACITY).map(|_| Box::pin(hang())).collect();
        for call in &mut hanging {
            assert!(futures_util::poll!(call).is_pending());
        }
        assert_eq!(bench.call(Ok(1)).await, Err(Rejected::QueueFull.into()));
        hanging.pop();
        assert_eq!(bench.call(Ok(1)).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn queue_timeout_does_not_trip_the_breaker() {
        let bench = Bench::with(Duration::from_millis(50), 1);
        let held = bench.guard.permit().await;
        for _ in 0..2 * FAILURES {
            assert_eq!(bench.call(Ok(1)).await, Err(Rejected::QueueFull.into()));
        }
        drop(held);
        assert_eq!(bench.call(Ok(1)).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn call_that_waited_behind_failures_names_the_last_failure() {
        let bench = Bench::with(Duration::from_millis(50), FAILURES as usize);
        let hang = || bench.guard.call(&bench.duration, std::future::pending::<Result<u8, Failed>>());
        let hanging = (0..2 * FAILURES).map(|_| hang());
        let answers = futures_util::future::join_all(hanging).await;
        let (first, behind) = answers.split_at(FAILURES as usize);
        assert!(
            first.iter().all(|answer| *answer == Err(Rejected::Timeout(Duration::from_millis(50)).into()))
        );
        let open =
            |answer: &Result<u8, Failed>| matches!(answer, Err(Failed::Rejected(Rejected::BreakerOpen(_))));
        assert!(behind.iter().all(open), "{behind:?}");
    }
}
