//! Where first proofs wait, real and made up. Pure: the time is passed in.
//!
//! An attempt on a prefix that exists needs bcrypt; one on a prefix that does not must look the same from outside, and
//! cost nothing. Two schedules serve this, over the same waiting attempts:
//!
//! - **The simulation** tells when a credential is *refused*. It has so many turns at once, gives them in the order of
//!   [`Turns`], ends each after the time that bcrypt takes at present, drops an attempt at its deadline, and bounds how
//!   many wait. It reads when an attempt arrived, of which prefix and from where; it never reads whether the prefix
//!   exists. So all that a caller without the right secret can see (that it was refused, when, and as what) is the
//!   same for both kinds, in every sequence of attempts: not by sampling the same
//!   distribution, but because it is the same computation.
//!   A look-up takes longer for a prefix that memory does not have. Therefore each attempt joins the simulation as long
//!   after the arrival of its check as look-ups usually take.
//! - **The computations** tell when a credential is *proven*. Threads take the real attempts alone, in an order of
//!   the same kind, as soon as one is free. No made-up key delays them. What they find to be wrong waits for its turn in
//!   the simulation to end.
//!
//! For the first to hold, no refusal may be late: a real attempt must be computed when its simulated turn ends.
//! The order of the simulation changes with each arrival, so a thread may be at work for somebody whose turn is
//! still to come when another's turn begins. Therefore only a part of the threads works ahead of the
//! simulation; the others, as many as there are turns, are left for those whose turn has begun. With one thread there
//! is nothing to divide: a refusal may then be late by one computation.
//!
//! What a caller can learn is whether its own *good* keys are proven a little later, since these share the threads
//! with real attempts alone.

use std::time::{Duration, Instant};

use super::{
    lookup_time::LookupTime,
    marks::{Class, Marks, Source},
    order::{Turns, victim},
    watch::TurnedAway,
};
use crate::config::FailedAttempts;

/// Attempts and their schedules. `J` is the work of a real attempt, `A` what its answer goes to.
pub(super) struct Queue<J, A> {
    config: QueueConfig,
    /// How long a simulated turn takes.
    turn_time: Duration,
    lookup_time: LookupTime,
    arrivals: u64,
    /// Attempts that have joined the simulation so far.
    joined: u64,
    attempts: Vec<Waiting<J, A>>,
    simulated: Vec<Turn>,
    simulated_order: Turns,
    computing: Vec<(u64, Source)>,
    computing_order: Turns,
    /// What the simulation has refused.
    failures: Marks,
    /// What the threads have found to be wrong: for their own order alone, which no caller can see.
    computed_failures: Marks,
    answers: Vec<(A, Outcome)>,
    turned_away: TurnedAway,
}

/// How much a [`Queue`] may hold and do.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueConfig {
    /// Threads that compute.
    pub(super) threads: usize,
    /// Attempts that may wait for their simulated turn.
    pub(super) waiting: usize,
    /// When a network is throttled.
    pub(super) failed_attempts: Option<FailedAttempts>,
}

/// One credential to be proven.
pub(super) struct Attempt<J, A> {
    /// Whose it is.
    pub(super) source: Source,
    /// The arrival of its check. Its look-up came after it.
    pub(super) arrived: Instant,
    /// Whether its look-up was answered from this process's memory.
    pub(super) from_memory: bool,
    /// When its caller waits no longer.
    pub(super) deadline: Instant,
    /// What is to be computed; `None` for a prefix that does not exist.
    pub(super) job: Option<J>,
    /// What the answer goes to.
    pub(super) answer_to: A,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It matches the record at this place.
    Match(usize),
    /// It matches none.
    Mismatch,
    /// It found no room, or no turn until its deadline.
    Overloaded,
    /// The same, for a network that failed too often; after this time it may be throttled no longer.
    TooManyAttempts(Duration),
    /// Its computation panicked.
    Abandoned,
}

/// What a computation found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Computed {
    Match(usize),
    Mismatch,
    Panicked,
}

struct Waiting<J, A> {
    arrival: u64,
    /// When it joins the simulation, and as which one.
    joins: Instant,
    joined: u64,
    source: Source,
    deadline: Instant,
    /// `None` once it was answered.
    answer_to: Option<A>,
    class: Class,
    computed_class: Class,
    simulation: Stage,
    work: Work<J>,
}

/// Where an attempt is in the simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its look-up was faster than look-ups usually are.
    Arriving,
    Waiting,
    InTurn,
    /// Its turn is over, and its computation is not.
    Late,
}

/// Where its computation is.
enum Work<J> {
    /// There is none, since the prefix does not exist; or it is done.
    Nothing,
    Waiting(J),
    Running,
}

struct Turn {
    arrival: u64,
    ends: Instant,
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
            turned_away: TurnedAway::default(),
        }
    }

    /// Turns that the simulation gives at the same time.
    fn turns(&self) -> usize {
        (self.config.threads / 2).max(1)
    }

    /// Computations that may run ahead of the simulation.
    fn ahead(&self) -> usize {
        if self.config.threads == 1 { 1 } else { self.config.threads - self.turns() }
    }

    /// Takes an attempt in.
    pub(super) fn arrive(&mut self, attempt: Attempt<J, A>, now: Instant) {
        self.advance(now);
        let Attempt { source, arrived, from_memory, deadline, job, answer_to } = attempt;
        if !from_memory {
            self.lookup_time.learn(now.saturating_duration_since(arrived));
        }
        let class = self.failures.class(&source, now);
        self.arrivals += 1;
        self.attempts.push(Waiting {
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

    /// Brings the simulation up to `now`, one event after the other.
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

    /// When [`Queue::advance`] has something to do next.
    pub(super) fn next_event(&self) -> Option<Instant> {
        let ends = self.simulated.iter().map(|turn| turn.ends);
        let deadlines = self.attempts.iter().filter(|attempt| attempt.can_be_overdue());
        let arriving = self.attempts.iter().filter(|attempt| attempt.simulation == Stage::Arriving);
        let joins = arriving.map(|attempt| attempt.joins);
        ends.chain(deadlines.map(|attempt| attempt.deadline)).chain(joins).min()
    }

    /// The computation that a free thread is to begin now.
    pub(super) fn next_job(&mut self) -> Option<(u64, J)> {
        if self.computing.len() >= self.config.threads {
            return None;
        }
        let waiting = || self.attempts.iter().filter(|attempt| matches!(attempt.work, Work::Waiting(_)));
        let in_turn = waiting().filter(|attempt| !attempt.is_in_line());
        let mut next = in_turn.map(|attempt| attempt.arrival).min();
        if next.is_none() && self.running_ahead() < self.ahead() {
            let position = |attempt: &&Waiting<J, A>| {
                self.computing_order.position(attempt.computed_class, &attempt.source, attempt.arrival)
            };
            next = waiting().min_by_key(position).map(|attempt| attempt.arrival);
        }
        let attempt = self.attempts.iter_mut().find(|attempt| Some(attempt.arrival) == next)?;
        let Work::Waiting(job) = std::mem::replace(&mut attempt.work, Work::Running) else { return None };
        self.computing_order.serve(&attempt.source);
        self.computing.push((attempt.arrival, attempt.source));
        Some((attempt.arrival, job))
    }

    /// Takes what a computation found.
    pub(super) fn finish(&mut self, arrival: u64, computed: Computed, now: Instant) {
        self.advance(now);
        let Some(at) = self.computing.iter().position(|(running, _)| *running == arrival) else { return };
        let (_, source) = self.computing.swap_remove(at);
        if computed == Computed::Mismatch {
            self.computed_failures.add_failure(&source, now);
            for attempt in self.attempts.iter_mut().filter(|attempt| attempt.source.is_related(&source)) {
                let class = self.computed_failures.class(&attempt.source, now);
                attempt.computed_class = attempt.computed_class.max(class);
            }
        }
        // It may be gone: its caller was turned away before.
        let Some(attempt) = self.attempts.iter_mut().find(|attempt| attempt.arrival == arrival) else {
            return;
        };
        attempt.work = Work::Nothing;
        let outcome = match computed {
            Computed::Match(record) => Some(Outcome::Match(record)),
            Computed::Panicked => Some(Outcome::Abandoned),
            Computed::Mismatch => None,
        };
        if let Some(outcome) = outcome {
            self.answers.extend(attempt.answer_to.take().map(|answer_to| (answer_to, outcome)));
        }
        if attempt.simulation == Stage::Late {
            self.refuse(arrival, now);
        }
    }

    /// Sets how long simulated turns take that begin from now on.
    pub(super) fn set_turn_time(&mut self, turn_time: Duration) {
        self.turn_time = turn_time;
    }

    /// What was answered since the last call.
    pub(super) fn take_answers(&mut self) -> Vec<(A, Outcome)> {
        std::mem::take(&mut self.answers)
    }

    /// Attempts that were turned away so far.
    pub(super) fn turned_away(&self) -> TurnedAway {
        self.turned_away
    }

    /// How many wait, in the order of [`Class::ALL`].
    pub(super) fn waiting(&self) -> [usize; 4] {
        let mut counts = [0; 4];
        self.in_line().for_each(|(class, ..)| counts[class as usize] += 1);
        counts
    }

    /// Real attempts that wait for a thread.
    pub(super) fn waiting_jobs(&self) -> usize {
        self.attempts.iter().filter(|attempt| matches!(attempt.work, Work::Waiting(_))).count()
    }

    /// Those that wait for a simulated turn.
    fn in_line(&self) -> impl Iterator<Item = (Class, &Source, u64)> {
        let waiting = self.attempts.iter().filter(|attempt| attempt.is_in_line());
        waiting.map(|attempt| (attempt.class, &attempt.source, attempt.arrival))
    }

    /// Computations whose simulated turn has not begun, or whose callers were turned away.
    fn running_ahead(&self) -> usize {
        let in_turn = |arrival: u64| {
            let mut attempts = self.attempts.iter();
            attempts.any(|attempt| attempt.arrival == arrival && !attempt.is_in_line())
        };
        self.computing.iter().filter(|(arrival, _)| !in_turn(*arrival)).count()
    }

    /// Lets those join that would be here now if every look-up took as long.
    fn join(&mut self, now: Instant) {
        let due = |attempt: &Waiting<J, A>| attempt.simulation == Stage::Arriving && attempt.joins <= now;
        let mut due: Vec<_> = self.attempts.iter_mut().filter(|attempt| due(attempt)).collect();
        due.sort_by_key(|attempt| (attempt.joins, attempt.arrival));
        for attempt in due {
            self.joined += 1;
            attempt.joined = self.joined;
            attempt.simulation = Stage::Waiting;
        }
    }

    fn begin_turns(&mut self, now: Instant) {
        while self.simulated.len() < self.turns() {
            let waiting = self.attempts.iter_mut().filter(|attempt| attempt.simulation == Stage::Waiting);
            let order = &self.simulated_order;
            let next =
                waiting.min_by_key(|attempt| order.position(attempt.class, &attempt.source, attempt.joined));
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

    /// Ends an attempt whose turn is over: unless it was proven, it matches no record, and is counted as a failure.
    fn refuse(&mut self, arrival: u64, now: Instant) {
        let Some(source) = self.end(arrival, Outcome::Mismatch) else { return };
        self.failures.add_failure(&source, now);
        for attempt in self.attempts.iter_mut().filter(|attempt| attempt.source.is_related(&source)) {
            attempt.class = self.failures.class(&attempt.source, now);
            attempt.computed_class = attempt.computed_class.max(attempt.class);
        }
    }

    /// Answers that there is no room for it, or no time.
    fn turn_away(&mut self, arrival: u64, now: Instant) {
        let Some(attempt) = self.attempts.iter().find(|attempt| attempt.arrival == arrival) else { return };
        let outcome = match attempt.class {
            Class::Throttled => Outcome::TooManyAttempts(self.failures.retry_after(&attempt.source, now)),
            Class::Clean | Class::OneMark | Class::TwoMarks => Outcome::Overloaded,
        };
        let network = attempt.source.networks.site();
        if self.end(arrival, outcome).is_some() {
            self.turned_away = TurnedAway { count: self.turned_away.count + 1, network };
        }
    }

    /// Takes an attempt out, and answers it unless it was answered: then there is nothing to return.
    fn end(&mut self, arrival: u64, outcome: Outcome) -> Option<Source> {
        let at = self.attempts.iter().position(|attempt| attempt.arrival == arrival)?;
        let Waiting { answer_to, source, .. } = self.attempts.swap_remove(at);
        self.answers.push((answer_to?, outcome));
        Some(source)
    }
}

impl<J, A> Waiting<J, A> {
    /// Whether its simulated turn has yet to begin.
    fn is_in_line(&self) -> bool {
        matches!(self.simulation, Stage::Arriving | Stage::Waiting)
    }

    fn is_overdue(&self, now: Instant) -> bool {
        self.can_be_overdue() && self.deadline <= now
    }

    /// What is under way is brought to its end.
    fn can_be_overdue(&self) -> bool {
        match self.simulation {
            Stage::Arriving | Stage::Waiting => true,
            Stage::InTurn => false,
            Stage::Late => matches!(self.work, Work::Waiting(_)),
        }
    }
}

#[cfg(test)]
mod tests;
