//! Threads dedicated to bcrypt, and the thread that runs the clock of the simulation.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use metrics::{Gauge, Histogram};
use tokio::sync::oneshot;

use super::{
    caller::Caller,
    marks::{Class, Source},
    networks::Networks,
    pace::Pace,
    queue::{Attempt, ComputationResult, Outcome, Queue, QueueConfig, Rejections},
};
use crate::{
    clock,
    config::FailedAttempts,
    credential::Prefix,
    dependencies::{Cause, Dependency, Reporter},
    metrics::{FirstProofs, Metrics},
};

/// Maximum number of waiting attempts. There are two reasons for this number:
/// - Large enough: at cost 12, a good key is proven before a thousand made-up keys a second take its place.
/// - Small enough: together with all waiting look-ups, it is well below the 1,024 requests that Envoy's circuit breaker
///   allows for a cluster.
const WAITING: usize = 384;

/// Added to the niceness of the bcrypt threads. It gives them a fifth of the normal CPU weight. So checks that need no
/// bcrypt have priority in a flood of wrong keys, and a new key is still proven in time on a busy machine.
const NICENESS: i32 = 7;

/// Maximum age of the last measurement while made-up keys arrive. The machine may have become slower since then.
const MEASURE_AGAIN: Duration = Duration::from_secs(1);
/// A measurement runs at the imitated cost minus this number, so that it stays short: 16 ms for cost 12.
const MEASURE_CHEAPER: u32 = 4;

/// Proves credentials with limited concurrency, and refuses made-up ones after the same time. The threads end when the
/// pool is dropped.
pub(super) struct Pool(Arc<PoolInner>);

/// One bcrypt computation.
pub(super) struct Job {
    /// The highest bcrypt cost among the hashes.
    pub(super) cost: u32,
    /// Returns the index of the matching record.
    pub(super) compute: Box<dyn FnOnce() -> Option<usize> + Send>,
}

struct PoolInner {
    state: Mutex<State>,
    /// Wakes the bcrypt threads.
    jobs: Condvar,
    /// Wakes the clock.
    events: Condvar,
    metrics: PoolMetrics,
}

struct State {
    queue: Queue<Job, oneshot::Sender<Outcome>>,
    pace: Pace,
    /// The cost that refusals imitate.
    cost: u32,
    measured: Option<Instant>,
    made_up: Option<Instant>,
    /// Rejections that were reported.
    reported: u64,
    closed: bool,
}

struct PoolMetrics {
    waiting_jobs: Gauge,
    duration: Histogram,
    waiting: [Gauge; 4],
    outcomes: FirstProofs,
    reporter: Reporter,
}

impl Pool {
    pub(super) fn start(
        threads: usize,
        cost: u32,
        failed_attempts: Option<FailedAttempts>,
        metrics: &Metrics,
    ) -> Self {
        let pace = Pace::default();
        let config = QueueConfig { threads, waiting: WAITING, failed_attempts };
        let state = State {
            queue: Queue::new(config, pace.duration(cost)),
            pace,
            cost,
            measured: None,
            made_up: None,
            reported: 0,
            closed: false,
        };
        let shared = Arc::new(PoolInner {
            state: Mutex::new(state),
            jobs: Condvar::new(),
            events: Condvar::new(),
            metrics: PoolMetrics {
                waiting_jobs: metrics.bcrypt_waiting(),
                duration: metrics.bcrypt_duration(),
                waiting: Class::ALL.map(|class| metrics.first_proofs_waiting(class.name())),
                outcomes: metrics.first_proofs(),
                reporter: metrics.reporter(Dependency::Bcrypt),
            },
        });
        for n in 0..threads {
            start_thread(format!("bcrypt-{n}"), &shared, move |shared| shared.compute(n == 0));
        }
        start_thread("bcrypt-clock".to_owned(), &shared, PoolInner::keep_time);
        Self(shared)
    }

    /// Adds an attempt to the queue. `job` is `None` for a prefix that does not exist. The receiver gets the outcome.
    pub(super) fn submit(
        &self,
        prefix: Prefix,
        caller: &Caller,
        from_memory: bool,
        job: Option<Job>,
    ) -> oneshot::Receiver<Outcome> {
        let (sender, receiver) = oneshot::channel();
        let networks = caller.client.map(Networks::around).unwrap_or_default();
        let source = Source { prefix, networks };
        let now = clock::monotonic();
        let mut state = self.0.state.lock();
        if job.is_none() {
            state.made_up = Some(now);
        }
        let next_event = state.queue.next_event();
        let (arrived, deadline) = (caller.now.monotonic, caller.deadline);
        state.queue.arrive(Attempt { source, arrived, from_memory, deadline, job, answer_to: sender }, now);
        if state.queue.next_event() != next_event {
            self.0.events.notify_one();
        }
        self.0.after_change(&mut state, now);
        receiver
    }

    /// Reports that a credential was not proven before the deadline of its check.
    pub(super) fn report_late(&self) {
        let problem = "credentials were not proven before the deadline of their checks (KEYSTILE_TIMEOUT)";
        self.0.metrics.reporter.fails_for(1, Cause::TooManyProofs, problem);
    }

    /// Counts a credential that was proven without the queue.
    pub(super) fn count_proven(&self) {
        self.0.metrics.outcomes.proven.increment(1);
    }

    /// Sets the cost that refusals imitate from now on.
    pub(super) fn imitate(&self, cost: u32) {
        let mut state = self.0.state.lock();
        state.cost = cost;
        state.follow_pace();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.0.state.lock().closed = true;
        self.0.jobs.notify_all();
        self.0.events.notify_all();
    }
}

fn start_thread(name: String, shared: &Arc<PoolInner>, run: impl FnOnce(&PoolInner) + Send + 'static) {
    let shared = Arc::clone(shared);
    let thread = std::thread::Builder::new().name(name);
    // Without its threads the process cannot prove any credential. It must fail at the start.
    thread.spawn(move || run(&shared)).expect("the system starts a thread");
}

impl PoolInner {
    /// A bcrypt thread.
    fn compute(&self, measures: bool) {
        // Some sandboxes deny this call. The queue still bounds the load.
        if let Err(error) = rustix::process::nice(NICENESS) {
            tracing::debug!(%error, "bcrypt threads keep their priority");
        }
        let mut state = self.state.lock();
        while !state.closed {
            let now = clock::monotonic();
            state.queue.advance(now);
            if let Some((arrival, job)) = state.queue.next_job() {
                self.after_change(&mut state, now);
                drop(state);
                let (computed, took) = run(job.compute);
                self.metrics.duration.record(took);
                state = self.state.lock();
                state.learn(job.cost, took);
                let now = clock::monotonic();
                state.queue.finish(arrival, computed, now);
                self.after_change(&mut state, now);
            } else if measures && state.needs_measurement(now) {
                let cost = state.cost.saturating_sub(MEASURE_CHEAPER).max(4);
                drop(state);
                let started = clock::monotonic();
                std::hint::black_box(bcrypt::bcrypt(cost, [0; 16], b"how long does it take?"));
                let took = started.elapsed();
                state = self.state.lock();
                state.learn(cost, took);
            } else {
                self.jobs.wait(&mut state);
            }
        }
    }

    /// The thread that advances the simulation.
    fn keep_time(&self) {
        let mut state = self.state.lock();
        while !state.closed {
            let now = clock::monotonic();
            state.queue.advance(now);
            self.after_change(&mut state, now);
            match state.queue.next_event() {
                None => self.events.wait(&mut state),
                Some(at) => drop(self.events.wait_until(&mut state, at)),
            }
        }
    }

    /// Sends the new outcomes, and wakes the threads if there is work.
    fn after_change(&self, state: &mut State, now: Instant) {
        for (answer_to, outcome) in state.queue.take_answers() {
            self.metrics.count(outcome);
            if outcome == Outcome::Abandoned {
                self.metrics.reporter.fails_for(1, Cause::Panicked, "a bcrypt computation panicked");
            }
            // The caller may have gone.
            let _ = answer_to.send(outcome);
        }
        if state.queue.has_job() || state.needs_measurement(now) {
            self.jobs.notify_all();
        }
        self.metrics.waiting_jobs.set(state.queue.waiting_jobs() as f64);
        for (gauge, count) in self.metrics.waiting.iter().zip(state.queue.waiting()) {
            gauge.set(count as f64);
        }
        let Rejections { count, network } = state.queue.rejections();
        if count > state.reported {
            let network = network.map(|network| format!(", the last from {network}")).unwrap_or_default();
            let problem = format!(
                "more unproven credentials arrive than bcrypt can check{network}: those without recent failures are served first"
            );
            self.metrics.reporter.fails_for(count - state.reported, Cause::TooManyProofs, problem);
            state.reported = count;
        }
    }
}

impl PoolMetrics {
    fn count(&self, outcome: Outcome) {
        let outcomes = &self.outcomes;
        let counter = match outcome {
            Outcome::Match(_) => &outcomes.proven,
            Outcome::Mismatch => &outcomes.mismatch,
            Outcome::Overloaded => &outcomes.overloaded,
            Outcome::TooManyAttempts(_) => &outcomes.too_many_attempts,
            Outcome::Abandoned => &outcomes.abandoned,
        };
        counter.increment(1);
    }
}

impl State {
    fn learn(&mut self, cost: u32, took: Duration) {
        self.measured = Some(clock::monotonic());
        self.pace.learn(cost, took);
        self.follow_pace();
    }

    fn follow_pace(&mut self) {
        self.queue.set_turn_time(self.pace.duration(self.cost));
    }

    /// Whether the duration of bcrypt must be measured: at the start, and while bcrypt is imitated but not run.
    fn needs_measurement(&self, now: Instant) -> bool {
        match (self.measured, self.made_up) {
            (None, _) => true,
            (Some(measured), Some(made_up)) => {
                now.saturating_duration_since(measured) > MEASURE_AGAIN
                    && now.saturating_duration_since(made_up) < MEASURE_AGAIN
            }
            (Some(_), None) => false,
        }
    }
}

/// Runs a computation. Catches a panic and returns it as a result, so that the thread continues.
fn run(compute: impl FnOnce() -> Option<usize>) -> (ComputationResult, Duration) {
    let started = clock::monotonic();
    let computed = match catch_unwind(AssertUnwindSafe(compute)) {
        Ok(Some(record)) => ComputationResult::Match(record),
        Ok(None) => ComputationResult::Mismatch,
        Err(_) => ComputationResult::Panicked,
    };
    (computed, started.elapsed())
}
