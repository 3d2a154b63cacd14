//! The queue of first proofs, for real and made-up prefixes. Pure: the time is passed in.
//!
//! An attempt is real if its prefix exists. It needs bcrypt. An attempt with a made-up prefix must look the same from
//! outside, and cost nothing. Two schedules run over the same waiting attempts:
//!
//! - **The simulation** decides when a credential is *refused*. It has a fixed number of concurrent turns and assigns
//!   them in the order of [`Turns`]. A turn ends after the current duration of bcrypt. The simulation rejects an
//!   attempt at its deadline, and limits the number of waiting attempts.
//!   It reads the arrival time, the prefix and the networks of an attempt. It never reads whether the prefix exists.
//!   So a caller without the right secret sees the same for both kinds, in every sequence of attempts: the refusal,
//!   its time and its answer. The two do not merely have the same distribution: they come from the same computation.
//!   A look-up takes longer for a prefix that is not in memory. Therefore each attempt joins the simulation after a
//!   delay, counted from the arrival of its check. The delay is the usual duration of look-ups.
//! - **The computations** decide when a credential is *proven*. Free threads take only real attempts, in an order of
//!   the same kind. No made-up key delays them. A mismatch is not reported before the simulated turn of the attempt
//!   ends.
//!
//! The simulation hides the difference only if no refusal is late: the computation of a real attempt must finish before
//! its simulated turn ends. But each arrival changes the order of the simulation. So when a turn begins, a thread may
//! still compute an attempt whose turn has not begun. Therefore only some threads work ahead of the simulation. The
//! other threads, one for each turn, are reserved for attempts whose turn has begun. A single thread cannot be divided.
//! A refusal may then be late by one computation.
//! No attempt with recent failures runs ahead while as many of them are computed as there are turns. So a flood of wrong
//! secrets leaves about half of the threads free for good keys, and the checks of known keys find an idle core.
//!
//! One thing is visible to a caller: whether its own *good* keys are proven slightly later, because they share the
//! threads with other real attempts only.

use std::time::{Duration, Instant};

use super::{
    lookup_time::LookupTime,
    marks::{Class, Marks, Source},
    order::{Turns, victim},
};
use crate::config::FailedAttempts;

mod attempt;

pub(super) use attempt::{Attempt, ComputationResult, Outcome, Rejections};
use attempt::{QueuedAttempt, Stage, Work};

/// Attempts and their schedules. `J` is the work of a real attempt. `A` is the receiver of its answer.
pub(super) struct Queue<J, A> {
    config: QueueConfig,
    /// Duration of a simulated turn.
    turn_time: Duration,
    lookup_time: LookupTime,
    arrivals: u64,
    /// Number of attempts that have joined the simulation since the start.
    joined: u64,
    attempts: Vec<QueuedAttempt<J, A>>,
    simulated: Vec<Turn>,
    simulated_order: Turns,
    computing: Vec<Computation>,
    computing_order: Turns,
    /// Failures: the refusals of the simulation.
    failures: Marks,
    /// Mismatches found by the threads. They affect only the order of the computations, which no caller can see.
    computed_failures: Marks,
    answers: Vec<(A, Outcome)>,
    rejections: Rejections,
}

/// Limits of a [`Queue`].
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueConfig {
    /// Number of bcrypt threads.
    pub(super) threads: usize,
    /// Maximum number of attempts that wait for their simulated turn.
    pub(super) waiting: usize,
    /// Failed attempts after which a network is throttled. `None`: never.
    pub(super) failed_attempts: Option<FailedAttempts>,
}

struct Turn {
    arrival: u64,
    ends: Instant,
}

/// A computation that runs now.
struct Computation {
    arrival: u64,
    source: Source,
    /// The class of its attempt when it began.
    class: Class,
}

impl<J, A> Queue<J, A> {
    pub(super) fn new(config: QueueConfig, turn_time: Duration) -> Self {
        Self {
            config,
            turn_time,
            lookup_time: LookupTime::default(),
            arrivals: 0,
            joined: 0,
            attempts: Vec::new(),
            simulated: Vec::new(),
            simulated_order: Turns::default(),
            computing: Vec::new(),
            computing_order: Turns::default(),
            failures: Marks::new(config.failed_attempts),
            computed_failures: Marks::new(None),
            answers: Vec::new(),
            rejections: Rejections::default(),
        }
    }

    /// Number of concurrent turns in the simulation.
    fn turns(&self) -> usize {
        (self.config.threads / 2).max(1)
    }

    /// Maximum number of computations that run ahead of the simulation.
    fn ahead(&self) -> usize {
        if self.config.threads == 1 { 1 } else { self.config.threads - self.turns() }
    }

    /// Adds an attempt. If the queue is over its limit then, rejects one attempt.
    pub(super) fn arrive(&mut self, attempt: Attempt<J, A>, now: Instant) {
        self.advance(now);
        let Attempt { source, arrived, from_memory, deadline, job, answer_to } = attempt;
        if !from_memory {
            self.lookup_time.learn(now.saturating_duration_since(arrived));
        }
        let class = self.failures.class(&source, now);
        self.arrivals += 1;
        self.attempts.push(QueuedAttempt {
            arrival: self.arrivals,
            joins: arrived.min(now) + self.lookup_time.duration(),
            joined: 0,
            source,
            deadline,
            answer_to: Some(answer_to),
            class,
            computed_class: class.max(self.computed_failures.class(&source, now)),
            simulation: Stage::Arriving,
            work: job.map_or(Work::Nothing, Work::Waiting),
        });
        self.join(now);
        self.begin_turns(now);
        if self.in_line().count() > self.config.waiting
            && let Some(victim) = victim(self.in_line())
        {
            self.turn_away(victim, now);
        }
    }

    /// Advances the simulation to `now`, one event after the other.
    pub(super) fn advance(&mut self, now: Instant) {
        while let Some(at) = self.next_event().filter(|at| *at <= now) {
            self.end_turns(at);
            let overdue: Vec<_> = self
                .attempts
                .iter()
                .filter(|attempt| attempt.is_overdue(at))
                .map(|late| late.arrival)
                .collect();
            overdue.into_iter().for_each(|arrival| self.turn_away(arrival, at));
            self.join(at);
            self.begin_turns(at);
        }
    }

    /// The time of the next event for [`Queue::advance`].
    pub(super) fn next_event(&self) -> Option<Instant> {
        let ends = self.simulated.iter().map(|turn| turn.ends);
        let deadlines = self.attempts.iter().filter(|attempt| attempt.can_be_overdue());
        let arriving = self.attempts.iter().filter(|attempt| attempt.simulation == Stage::Arriving);
        let joins = arriving.map(|attempt| attempt.joins);
        ends.chain(deadlines.map(|attempt| attempt.deadline)).chain(joins).min()
    }

    /// The next computation for a free thread.
    pub(super) fn next_job(&mut self) -> Option<(u64, J)> {
        if self.computing.len() >= self.config.threads {
            return None;
        }
        let in_turn = self.without_thread().filter(|attempt| !attempt.is_in_line());
        let next = in_turn.map(|attempt| attempt.arrival).min().or_else(|| self.next_ahead());
        let attempt = self.attempts.iter_mut().find(|attempt| Some(attempt.arrival) == next)?;
        let Work::Waiting(job) = std::mem::replace(&mut attempt.work, Work::Running) else { return None };
        self.computing_order.serve(&attempt.source);
        let QueuedAttempt { arrival, source, computed_class: class, .. } = *attempt;
        self.computing.push(Computation { arrival, source, class });
        Some((arrival, job))
    }

    /// Records the result of a computation.
    pub(super) fn finish(&mut self, arrival: u64, computed: ComputationResult, now: Instant) {
        self.advance(now);
        let Some(at) = self.computing.iter().position(|running| running.arrival == arrival) else { return };
        let source = self.computing.swap_remove(at).source;
        if computed == ComputationResult::Mismatch {
            self.computed_failures.add_failure(&source, now);
            for attempt in self.attempts.iter_mut().filter(|attempt| attempt.source.is_related(&source)) {
                let class = self.computed_failures.class(&attempt.source, now);
                attempt.computed_class = attempt.computed_class.max(class);
            }
        }
        // The attempt may be gone, because its caller was already rejected.
        let Some(attempt) = self.attempts.iter_mut().find(|attempt| attempt.arrival == arrival) else {
            return;
        };
        attempt.work = Work::Nothing;
        let outcome = match computed {
            ComputationResult::Match(record) => Some(Outcome::Match(record)),
            ComputationResult::Panicked => Some(Outcome::Abandoned),
            ComputationResult::Mismatch => None,
        };
        if let Some(outcome) = outcome {
            self.answers.extend(attempt.answer_to.take().map(|answer_to| (answer_to, outcome)));
        }
        if attempt.simulation == Stage::Late {
            self.refuse(arrival, now);
        }
    }

    /// Sets the duration of simulated turns that begin from now on.
    pub(super) fn set_turn_time(&mut self, turn_time: Duration) {
        self.turn_time = turn_time;
    }

    /// The answers since the last call.
    pub(super) fn take_answers(&mut self) -> Vec<(A, Outcome)> {
        std::mem::take(&mut self.answers)
    }

    /// Attempts that were rejected since the start.
    pub(super) fn rejections(&self) -> Rejections {
        self.rejections
    }

    /// Number of waiting attempts of each class, in the order of [`Class::ALL`].
    pub(super) fn waiting(&self) -> [usize; 4] {
        let mut counts = [0; 4];
        self.in_line().for_each(|(class, ..)| counts[class as usize] += 1);
        counts
    }

    /// Whether a free thread has work.
    pub(super) fn has_job(&self) -> bool {
        let is_in_turn = |attempt: &QueuedAttempt<J, A>| !attempt.is_in_line();
        self.computing.len() < self.config.threads
            && (self.without_thread().any(is_in_turn) || self.may_run_ahead().next().is_some())
    }

    /// Number of real attempts that wait for a thread.
    pub(super) fn waiting_jobs(&self) -> usize {
        self.without_thread().count()
    }

    fn without_thread(&self) -> impl Iterator<Item = &QueuedAttempt<J, A>> {
        self.attempts.iter().filter(|attempt| matches!(attempt.work, Work::Waiting(_)))
    }

    /// Attempts that wait for a simulated turn.
    fn in_line(&self) -> impl Iterator<Item = (Class, &Source, u64)> {
        let waiting = self.attempts.iter().filter(|attempt| attempt.is_in_line());
        waiting.map(|attempt| (attempt.class, &attempt.source, attempt.arrival))
    }

    /// The attempt that a free thread computes before its turn. Among those with recent failures it is the attempt
    /// whose turn is next. Otherwise another thread would have to compute that one at the same time.
    fn next_ahead(&self) -> Option<u64> {
        let mut may_run = self.may_run_ahead().peekable();
        may_run.peek()?;
        let next_turn = self.next_turn();
        let position = |attempt: &&QueuedAttempt<J, A>| {
            let QueuedAttempt { computed_class: class, source, arrival, .. } = attempt;
            let order = self.computing_order.position(*class, source, *arrival);
            (*class != Class::Clean, Some(*arrival) != next_turn, order)
        };
        may_run.min_by_key(position).map(|attempt| attempt.arrival)
    }

    /// The attempts that a free thread may compute before their turns.
    fn may_run_ahead(&self) -> impl Iterator<Item = &QueuedAttempt<J, A>> {
        let has_room = self.running_ahead() < self.ahead();
        let marked_may_run = self.running_marked() < self.turns();
        let may_run = move |class| has_room && (marked_may_run || class == Class::Clean);
        self.without_thread().filter(move |attempt| may_run(attempt.computed_class))
    }

    /// Number of computations of attempts with recent failures.
    fn running_marked(&self) -> usize {
        self.computing.iter().filter(|running| running.class != Class::Clean).count()
    }

    /// Number of computations whose simulated turn has not begun, or whose caller was rejected.
    fn running_ahead(&self) -> usize {
        let in_turn = |arrival: u64| {
            let mut attempts = self.attempts.iter();
            attempts.any(|attempt| attempt.arrival == arrival && !attempt.is_in_line())
        };
        self.computing.iter().filter(|running| !in_turn(running.arrival)).count()
    }

    /// Lets the attempts join that would have arrived by now if every look-up took the usual time.
    fn join(&mut self, now: Instant) {
        let due =
            |attempt: &QueuedAttempt<J, A>| attempt.simulation == Stage::Arriving && attempt.joins <= now;
        let mut due: Vec<_> = self.attempts.iter_mut().filter(|attempt| due(attempt)).collect();
        due.sort_by_key(|attempt| (attempt.joins, attempt.arrival));
        for attempt in due {
            self.joined += 1;
            attempt.joined = self.joined;
            attempt.simulation = Stage::Waiting;
        }
    }

    /// The attempt whose turn would begin now.
    fn next_turn(&self) -> Option<u64> {
        let waiting = self.attempts.iter().filter(|attempt| attempt.simulation == Stage::Waiting);
        let position = |attempt: &&QueuedAttempt<J, A>| {
            self.simulated_order.position(attempt.class, &attempt.source, attempt.joined)
        };
        waiting.min_by_key(position).map(|attempt| attempt.arrival)
    }

    fn begin_turns(&mut self, now: Instant) {
        while self.simulated.len() < self.turns() {
            let next = self.next_turn();
            let next = self.attempts.iter_mut().find(|attempt| Some(attempt.arrival) == next);
            let Some(attempt) = next else { return };
            attempt.simulation = Stage::InTurn;
            self.simulated.push(Turn { arrival: attempt.arrival, ends: now + self.turn_time });
            self.simulated_order.serve(&attempt.source);
        }
    }

    fn end_turns(&mut self, now: Instant) {
        while let Some(at) = self.simulated.iter().position(|turn| turn.ends <= now) {
            let Turn { arrival, .. } = self.simulated.swap_remove(at);
            let attempt = self.attempts.iter_mut().find(|attempt| attempt.arrival == arrival);
            let Some(attempt) = attempt else { continue };
            attempt.simulation = Stage::Late;
            if matches!(attempt.work, Work::Nothing) {
                self.refuse(arrival, now);
            }
        }
    }

    /// Ends an attempt whose turn has ended. If it was not proven, the answer is a mismatch and a failure is counted.
    fn refuse(&mut self, arrival: u64, now: Instant) {
        let Some(source) = self.end(arrival, Outcome::Mismatch) else { return };
        self.failures.add_failure(&source, now);
        for attempt in self.attempts.iter_mut().filter(|attempt| attempt.source.is_related(&source)) {
            attempt.class = self.failures.class(&attempt.source, now);
            attempt.computed_class = attempt.computed_class.max(attempt.class);
        }
    }

    /// Rejects an attempt, because the queue is full or its deadline has passed.
    fn turn_away(&mut self, arrival: u64, now: Instant) {
        let Some(attempt) = self.attempts.iter().find(|attempt| attempt.arrival == arrival) else { return };
        let outcome = match attempt.class {
            Class::Throttled => Outcome::TooManyAttempts(self.failures.retry_after(&attempt.source, now)),
            Class::Clean | Class::OneMark | Class::TwoMarks => Outcome::Overloaded,
        };
        let network = attempt.source.networks.site();
        if self.end(arrival, outcome).is_some() {
            self.rejections = Rejections { count: self.rejections.count + 1, network };
        }
    }

    /// Removes an attempt and answers it. Returns `None` if it was already answered.
    fn end(&mut self, arrival: u64, outcome: Outcome) -> Option<Source> {
        let at = self.attempts.iter().position(|attempt| attempt.arrival == arrival)?;
        let QueuedAttempt { answer_to, source, .. } = self.attempts.swap_remove(at);
        self.answers.push((answer_to?, outcome));
        Some(source)
    }
}

#[cfg(test)]
mod tests;
