//! Threads that do nothing but bcrypt, and the one that keeps the simulation's time.

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
    queue::{Attempt, Computed, Outcome, Queue, QueueConfig},
    watch::FloodWatch,
};
use crate::{
    clock,
    config::FailedAttempts,
    credential::Prefix,
    metrics::{FirstProofs, Metrics},
};

/// Attempts that may wait: enough for a good key to be proven at cost 12 before a thousand made-up keys a second have
/// taken its place, and with all look-ups that may wait well below the 1,024 requests that Envoy's circuit breaker
/// lets through to a cluster.
const WAITING: usize = 384;

/// Added to the niceness of the bcrypt threads: against a fifth of their weight, checks that need no bcrypt come first in
/// a flood of wrong keys, and a new key is still proven in time on a busy machine.
const NICENESS: i32 = 7;

/// How old the last measurement may be while made-up keys come: the machine may have become slower since.
const MEASURE_AGAIN: Duration = Duration::from_secs(1);
/// How much cheaper than the imitated cost a measurement is, as a power of two, so that it takes no time worth
/// mentioning: 16 ms at cost 12.
const MEASURE_CHEAPER: u32 = 4;

/// Proves credentials, a few at a time, and refuses made-up ones in the same time. The threads end when it is dropped.
pub(super) struct Pool(Arc<Shared>);

/// What there is to compute.
pub(super) struct Job {
    /// Of the last hash that is tried.
    pub(super) cost: u32,
    /// The record that matches, by its place.
    pub(super) compute: Box<dyn FnOnce() -> Option<usize> + Send>,
}

struct Shared {
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
    flood: FloodWatch,
    closed: bool,
}

struct PoolMetrics {
    waiting_jobs: Gauge,
    duration: Histogram,
    waiting: [Gauge; 4],
    outcomes: FirstProofs,
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
            flood: FloodWatch::default(),
            closed: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            jobs: Condvar::new(),
            events: Condvar::new(),
            metrics: PoolMetrics {
                waiting_jobs: metrics.bcrypt_waiting(),
                duration: metrics.bcrypt_duration(),
                waiting: Class::ALL.map(|class| metrics.first_proofs_waiting(class.name())),
                outcomes: metrics.first_proofs(),
            },
        });
        for n in 0..threads {
            start_thread(format!("bcrypt-{n}"), &shared, move |shared| shared.compute(n == 0));
        }
        start_thread("bcrypt-clock".to_owned(), &shared, Shared::keep_time);
        Self(shared)
    }

    /// Takes an attempt in; `job` is `None` for a prefix that does not exist. How it ended comes through the receiver.
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

    /// From now on refusals take the time of this cost.
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

fn start_thread(name: String, shared: &Arc<Shared>, run: impl FnOnce(&Shared) + Send + 'static) {
    let shared = Arc::clone(shared);
    let thread = std::thread::Builder::new().name(name);
    // Without its threads the process could prove nothing: better to say so at the start.
    thread.spawn(move || run(&shared)).expect("the system starts a thread");
}

impl Shared {
    /// A bcrypt thread.
    fn compute(&self, measures: bool) {
        // Refused by some sandboxes; the queue bounds the load all the same.
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

    /// The thread that moves the simulation on.
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

    /// Sends what was answered, and wakes the threads if there is work.
    fn after_change(&self, state: &mut State, now: Instant) {
        for (answer_to, outcome) in state.queue.take_answers() {
            self.metrics.count(outcome);
            // Its caller may have left.
            let _ = answer_to.send(outcome);
        }
        let jobs = state.queue.waiting_jobs();
        if jobs > 0 || state.needs_measurement(now) {
            self.jobs.notify_all();
        }
        self.metrics.waiting_jobs.set(jobs as f64);
        for (gauge, count) in self.metrics.waiting.iter().zip(state.queue.waiting()) {
            gauge.set(count as f64);
        }
        if let Some(flood) = state.flood.look(state.queue.turned_away(), now) {
            tracing::warn!(
                turned_away = flood.count,
                network = flood.network.map(tracing::field::display),
                "more credentials are shown for the first time than can be proven: those without recent failures come first"
            );
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

    /// Whether it must be measured how long bcrypt takes: at the start, and while it is imitated but not run.
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

/// Runs a computation. A panic is the answer's problem; the thread lives on.
fn run(compute: impl FnOnce() -> Option<usize>) -> (Computed, Duration) {
    let started = clock::monotonic();
    let computed = match catch_unwind(AssertUnwindSafe(compute)) {
        Ok(Some(record)) => Computed::Match(record),
        Ok(None) => Computed::Mismatch,
        Err(_) => Computed::Panicked,
    };
    (computed, started.elapsed())
}
