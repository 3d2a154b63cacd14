//! Remembers that Redis refused a charge, so that a busy key at its limit does not ask for each request. Pure.

use std::time::{Duration, Instant};

use crate::{
    limiter::redis::protocol::LeaseReply,
    limits::{Charge, LimitStatus},
    record::Limits,
};

/// How long a refusal holds. It is short because other instances may return leases.
pub(super) const REFUSAL_TTL: Duration = Duration::from_millis(250);

/// Redis' last refusal for one key.
#[derive(Debug)]
pub(super) struct RefusalCache {
    /// What remained in the fullest window.
    remaining: u64,
    until: Instant,
    limits: Limits,
    status: LimitStatus,
}

impl RefusalCache {
    /// The refusal of a request that was sent at `sent`.
    pub(super) fn new(charge: &Charge, reply: &LeaseReply, sent: Instant) -> Self {
        let remaining = charge.limited().map(|(span, limit)| reply.remaining(span, limit)).min();
        Self {
            remaining: remaining.unwrap_or(0),
            // A new window makes the refusal void.
            until: sent + reply.ends_in(charge).min(REFUSAL_TTL),
            limits: charge.limits,
            status: reply.status(charge),
        }
    }

    /// The status to refuse a charge with; `None` if Redis has to be asked.
    pub(super) fn get(&self, charge: &Charge, now: Instant) -> Option<LimitStatus> {
        let holds = now < self.until && self.limits == charge.limits && charge.cost() > self.remaining;
        holds.then_some(self.status)
    }
}
