//! One attempt to prove a credential: what its caller gives, how it ends, and its stages in between.

use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::verifier::marks::{Class, Source};

/// One attempt to prove a credential.
pub(in crate::verifier) struct Attempt<J, A> {
    /// The prefix and the networks of the attempt.
    pub(in crate::verifier) source: Source,
    /// The arrival of its check, before its look-up.
    pub(in crate::verifier) arrived: Instant,
    /// Whether its look-up was answered from this process's memory.
    pub(in crate::verifier) from_memory: bool,
    /// The deadline of its caller.
    pub(in crate::verifier) deadline: Instant,
    /// The computation. `None` for a prefix that does not exist.
    pub(in crate::verifier) job: Option<J>,
    /// The receiver of the answer.
    pub(in crate::verifier) answer_to: A,
}

/// Attempts that were rejected since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::verifier) struct Rejections {
    pub(in crate::verifier) count: u64,
    /// The site of the last rejected attempt. `None` if Envoy vouches for no address.
    pub(in crate::verifier) network: Option<IpNet>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::verifier) enum Outcome {
    /// The credential matches the record at this index.
    Match(usize),
    /// The credential matches no record.
    Mismatch,
    /// The queue was full, or the attempt got no turn before its deadline.
    Overloaded,
    /// Same as [`Outcome::Overloaded`], for a throttled network. The throttling may end after this time.
    TooManyAttempts(Duration),
    /// Its computation panicked.
    Abandoned,
}

/// The result of a computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::verifier) enum ComputationResult {
    Match(usize),
    Mismatch,
    Panicked,
}

pub(super) struct QueuedAttempt<J, A> {
    pub(super) arrival: u64,
    /// The time at which it joins the simulation.
    pub(super) joins: Instant,
    /// Its number in the order of joining. 0 until it has joined.
    pub(super) joined: u64,
    pub(super) source: Source,
    pub(super) deadline: Instant,
    /// `None` once the answer was sent.
    pub(super) answer_to: Option<A>,
    pub(super) class: Class,
    pub(super) computed_class: Class,
    pub(super) simulation: Stage,
    pub(super) work: Work<J>,
}

/// The stage of an attempt in the simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The attempt has not joined yet, because its look-up was faster than usual.
    Arriving,
    Waiting,
    InTurn,
    /// Its turn has ended, and its computation has not.
    Late,
}

/// The stage of its computation.
pub(super) enum Work<J> {
    /// There is no computation, because the prefix does not exist, or it has finished.
    Nothing,
    Waiting(J),
    Running,
}

impl<J, A> QueuedAttempt<J, A> {
    /// Whether its simulated turn has not begun.
    pub(super) fn is_in_line(&self) -> bool {
        matches!(self.simulation, Stage::Arriving | Stage::Waiting)
    }

    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.can_be_overdue() && self.deadline <= now
    }

    /// Whether its deadline can end it. A simulated turn that has begun is completed. After the turn, a computation
    /// that has started is completed too.
    pub(super) fn can_be_overdue(&self) -> bool {
        match self.simulation {
            Stage::Arriving | Stage::Waiting => true,
            Stage::InTurn => false,
            Stage::Late => matches!(self.work, Work::Waiting(_)),
        }
    }
}
