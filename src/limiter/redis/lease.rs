//! What an instance knows of one key: its lease, and the use in each window. Pure.
//!
//! A lease is charged in Redis when it is taken. So all instances together allow no more than the limit, even if an
//! instance never uses or returns its lease.

use std::time::{Duration, Instant};

use super::{
    membership::Fleet,
    protocol::{LeaseReply, LeaseRequest, WindowRequest},
};
use crate::{
    limits::{Charge, LimitScope, LimitStatus, PerSpan, Span},
    record::{KeyId, Limits},
};

mod refusal_cache;
mod window;

use refusal_cache::RefusalCache;
use window::WindowState;

/// Maximum lifetime of a lease. What remains is then returned.
pub(super) const TERM: Duration = Duration::from_secs(2);

/// The time that a lease should last at the present rate.
const HORIZON: Duration = Duration::from_secs(1);

/// Minimum sampling interval for the rate estimate. Without it, a short burst would look like a flood.
const MIN_SAMPLE: Duration = Duration::from_millis(100);

/// What is known of one key.
#[derive(Debug, Default)]
pub(super) struct KeyState {
    windows: PerSpan<WindowState>,
    lease: Lease,
    /// The cost of the callers that wait for a lease.
    waiting: u64,
    /// Charged to leases since the last grant.
    spent: u64,
    granted: Option<Instant>,
    refusal: Option<Box<RefusalCache>>,
}

#[derive(Debug, Default)]
struct Lease {
    remaining: u64,
    until: Option<Instant>,
    /// The limits that it was charged against.
    limits: Limits,
    /// The windows that it was charged in.
    numbers: PerSpan<u64>,
}

/// The outcome of a charge against the present lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaseOutcome {
    /// The lease was charged.
    Allowed(LimitStatus),
    /// Redis has recently refused as much.
    Refused(LimitStatus),
    /// The lease holds too little. Redis has to be asked.
    Insufficient,
}

/// What an instance reconciles with Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reconcile {
    /// Unreported use, and leases that have ended.
    Open,
    /// All use, because Redis may have lost it.
    All,
    /// Unreported use, and all leases.
    Leaving,
}

impl KeyState {
    /// Charges the present lease.
    pub(super) fn take(&mut self, charge: &Charge, now: Instant, redis_now: Duration) -> LeaseOutcome {
        self.end_lease(Some(charge.limits), now);
        if self.lease.remaining >= charge.cost() {
            self.lease.remaining -= charge.cost();
            self.spent += charge.cost();
            return LeaseOutcome::Allowed(self.status(charge, redis_now));
        }
        let refused = self.refusal.as_ref().and_then(|refusal| refusal.get(charge, now));
        refused.map_or(LeaseOutcome::Insufficient, LeaseOutcome::Refused)
    }

    /// Records that a caller waits for its cost.
    pub(super) fn add_waiting(&mut self, charge: &Charge) {
        self.waiting += charge.cost();
    }

    /// A request for the cost alone.
    pub(super) fn request(&self, charge: &Charge) -> LeaseRequest {
        let limits = charge.limits.per_span();
        let window = |span: Span| {
            let WindowState { number, own, .. } = self.windows[span as usize];
            Some(WindowRequest { limit: limits[span as usize]?, number, own, returned: 0, unreported: 0 })
        };
        let windows = Span::ALL.map(window);
        LeaseRequest { key: charge.key, need: charge.cost(), want: charge.cost(), part: 1, windows }
    }

    /// A request for the cost, for the callers that wait, and for the need of the near future. It returns what remains
    /// of ended leases. The more instances there are and the less remains, the less is charged in advance; near the
    /// limit, nothing is.
    pub(super) fn request_lease(&mut self, charge: &Charge, fleet: Fleet, now: Instant) -> LeaseRequest {
        let since = self.granted.map(|granted| now.saturating_duration_since(granted).max(MIN_SAMPLE));
        let ahead = since.map_or(0.0, |since| self.spent as f64 * HORIZON.div_duration_f64(since));
        let want = charge.cost().max(self.waiting) + ahead as u64;
        let mut request = LeaseRequest { want, part: 2 * fleet.count, ..self.request(charge) };
        // Returned in the same step, or the remainder of the last lease would be missing for this one.
        for (window, state) in request.windows.iter_mut().zip(&self.windows) {
            window.iter_mut().for_each(|window| window.returned = state.returned);
        }
        request
    }

    /// A request that reports unreported use and returns what is not needed; `None` if there is neither.
    pub(super) fn reconciliation(
        &mut self,
        key: KeyId,
        now: Instant,
        what: Reconcile,
    ) -> Option<LeaseRequest> {
        match what {
            Reconcile::Leaving => self.return_lease(),
            Reconcile::Open | Reconcile::All => self.end_lease(None, now),
        }
        let all = what == Reconcile::All;
        self.windows.iter().find(|window| window.is_open() || (all && window.own > 0))?;
        let windows = self.windows.map(WindowState::report);
        Some(LeaseRequest { key, need: 0, want: 0, part: 1, windows })
    }

    /// Applies a reply.
    pub(super) fn apply(&mut self, request: &LeaseRequest, reply: &LeaseReply) {
        let windows = request.windows.iter().zip(&reply.windows);
        for (state, (window, reply)) in self.windows.iter_mut().zip(windows) {
            let (Some(window), Some(reply)) = (window, reply) else { continue };
            state.apply(window, reply);
        }
    }

    /// Applies the reply to a request for a lease that was sent at `sent`.
    pub(super) fn apply_lease(
        &mut self,
        charge: &Charge,
        request: &LeaseRequest,
        reply: &LeaseReply,
        sent: Instant,
    ) {
        self.waiting = 0;
        self.apply_reconciliation(request, reply);
        if reply.grant == 0 {
            self.refusal = Some(Box::new(RefusalCache::new(charge, reply, sent)));
            return;
        }
        let numbers = reply.windows.map(|window| window.map_or(0, |window| window.number));
        if self.lease.limits != charge.limits || self.lease.numbers != numbers {
            self.return_lease();
        }
        self.refusal = None;
        self.spent = 0;
        self.granted = Some(sent);
        // Counted from the sending: Redis read its clock later, so its window does not end before that.
        let until = Some(sent + reply.ends_in(charge).min(TERM));
        let remaining = self.lease.remaining + reply.grant;
        self.lease = Lease { remaining, until, limits: charge.limits, numbers };
    }

    /// Applies the reply to a reconciliation.
    ///
    /// A key has one request for a lease at a time. So any further use that Redis has charged to this instance belongs
    /// to a request whose reply was lost. It is returned.
    pub(super) fn apply_reconciliation(&mut self, request: &LeaseRequest, reply: &LeaseReply) {
        self.apply(request, reply);
        let windows = request.windows.iter().zip(&reply.windows);
        for (state, (window, window_reply)) in self.windows.iter_mut().zip(windows) {
            let (Some(window), Some(window_reply)) = (window, window_reply) else { continue };
            state.return_lost_grants(window, window_reply, reply.grant);
        }
    }

    /// Records that a request had no reply. Its report stays to be sent again: Redis counts a report once.
    pub(super) fn fail_request(&mut self) {
        self.waiting = 0;
    }

    /// Charges this instance's part of each limit, without Redis.
    pub(super) fn charge_part(
        &mut self,
        charge: &Charge,
        fleet: Fleet,
        redis_now: Duration,
    ) -> Result<LimitStatus, LimitStatus> {
        for (span, _) in charge.limited() {
            self.windows[span as usize].start_if_new(span.number(redis_now));
        }
        let remaining =
            |state: &Self, span: Span, limit| state.windows[span as usize].part_remaining(limit, fleet);
        let fits = charge.limited().all(|(span, limit)| remaining(self, span, limit) >= charge.cost());
        if fits {
            charge.limited().for_each(|(span, _)| self.windows[span as usize].unreported += charge.cost());
        }
        let status = charge.status(LimitScope::Divided, |span, limit| {
            let number = self.windows[span as usize].number;
            (remaining(self, span, limit), span.ends_in(number, redis_now))
        });
        if fits { Ok(status) } else { Err(status) }
    }

    /// Whether nothing is lost if this state is dropped.
    pub(super) fn has_ended(&self, redis_now: Duration) -> bool {
        let ended = |(span, window): (Span, &WindowState)| window.number < span.number(redis_now);
        self.lease.remaining == 0 && Span::ALL.into_iter().zip(&self.windows).all(ended)
    }

    /// The status of the limits, as far as this instance knows.
    pub(super) fn status(&self, charge: &Charge, redis_now: Duration) -> LimitStatus {
        charge.status(LimitScope::Redis, |span, limit| {
            let WindowState { number, used, .. } = self.windows[span as usize];
            let present = span.number(redis_now);
            if number < present {
                return (limit, span.ends_in(present, redis_now));
            }
            let remaining = limit.saturating_sub(used) + self.lease.remaining;
            (remaining.min(limit), span.ends_in(number, redis_now))
        })
    }

    /// Ends a lease that has expired, or that was charged against other limits.
    fn end_lease(&mut self, limits: Option<Limits>, now: Instant) {
        let has_expired = self.lease.until.is_some_and(|until| now >= until);
        if has_expired || limits.is_some_and(|limits| limits != self.lease.limits) {
            self.return_lease();
        }
    }

    /// Marks the remainder of the lease as returned, in the windows that have not ended.
    fn return_lease(&mut self) {
        let remaining = std::mem::take(&mut self.lease.remaining);
        let charged = self.lease.numbers.iter().zip(self.lease.limits.per_span());
        for (window, (number, limit)) in self.windows.iter_mut().zip(charged) {
            if limit.is_some() && window.number == *number {
                window.returned += remaining;
            }
        }
    }
}

#[cfg(test)]
mod tests;
