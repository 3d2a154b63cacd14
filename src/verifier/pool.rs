//! Threads that do nothing but bcrypt, behind a short queue.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use metrics::{Gauge, Histogram};
use tokio::sync::oneshot;

use crate::metrics::Metrics;

/// Jobs that may wait for each thread: at bcrypt cost 12, about as long as a check may take.
const QUEUE_PER_THREAD: usize = 8;

/// Added to the niceness of these threads: against a fifth of their weight, checks that need no bcrypt
/// come first in a flood of wrong keys, and a new key is still proven in time on a busy machine.
const NICENESS: i32 = 7;

/// A fixed number of threads and a bounded queue. The threads end when it is dropped.
pub(super) struct Pool {
    jobs: Sender<Job>,
    waiting: Gauge,
    duration: Histogram,
}

/// The queue is full.
#[derive(Debug)]
pub(super) struct Full;

type Job = Box<dyn FnOnce() + Send>;

struct Worker {
    queue: Receiver<Job>,
    waiting: Gauge,
}

impl Pool {
    pub(super) fn start(threads: usize, metrics: &Metrics) -> Self {
        let (jobs, queue) = bounded::<Job>(threads * QUEUE_PER_THREAD);
        for n in 0..threads {
            let worker = Worker { queue: queue.clone(), waiting: metrics.bcrypt_waiting() };
            let thread = std::thread::Builder::new().name(format!("bcrypt-{n}"));
            // Without its threads the process could prove nothing: better to say so at the start.
            thread.spawn(move || worker.run()).expect("the system starts a thread");
        }
        Self { jobs, waiting: metrics.bcrypt_waiting(), duration: metrics.bcrypt_duration() }
    }

    /// Queues `compute`; what it returns comes through the receiver, which fails if it panicked.
    pub(super) fn run<T: Send + 'static>(
        &self,
        compute: impl FnOnce() -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, Full> {
        let (sender, answer) = oneshot::channel();
        let duration = self.duration.clone();
        let job = Box::new(move || {
            let started = Instant::now();
            let value = compute();
            duration.record(started.elapsed());
            // Nobody may be waiting any more; what was computed is remembered all the same.
            let _ = sender.send(value);
        });
        match self.jobs.try_send(job) {
            Ok(()) => {
                self.waiting.set(self.jobs.len() as f64);
                Ok(answer)
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(Full),
        }
    }
}

impl Worker {
    fn run(self) {
        // Refused by some sandboxes; the queue bounds the load all the same.
        if let Err(error) = rustix::process::nice(NICENESS) {
            tracing::debug!(%error, "bcrypt threads keep their priority");
        }
        for job in &self.queue {
            self.waiting.set(self.queue.len() as f64);
            // A panic is the answer's problem, which its dropped sender reports; the thread lives on.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    }
}
