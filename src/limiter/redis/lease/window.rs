//! What an instance knows of one window. Pure.

use crate::limiter::redis::{
    membership::Fleet,
    protocol::{WindowReply, WindowRequest},
};

/// The use in one window.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct WindowState {
    pub(super) number: u64,
    /// Use of all instances, by the last reply.
    pub(super) used: u64,
    /// Use of this instance that Redis knows. Leases count as used.
    pub(super) own: u64,
    /// Use of this instance without Redis, which it has to report.
    pub(super) unreported: u64,
    /// The part of `own` that was not used after all, and has to be returned.
    pub(super) returned: u64,
}

impl WindowState {
    /// Whether there is something to report or to return.
    pub(super) fn is_open(&self) -> bool {
        self.unreported > 0 || self.returned > 0
    }

    /// Reports all use; `None` if there is none.
    pub(super) fn report(self) -> Option<WindowRequest> {
        let Self { number, own, unreported, returned, .. } = self;
        let own = own + unreported;
        (own > 0).then_some(WindowRequest { limit: 0, number, own, returned, unreported })
    }

    /// Applies a reply.
    pub(super) fn apply(&mut self, request: &WindowRequest, reply: &WindowReply) {
        // The reply is about the window before the one that is known already.
        if reply.number + 1 == self.number {
            return;
        }
        if self.number != reply.number {
            let WindowReply { number, used, own } = *reply;
            *self = Self { number, used, own, ..Self::default() };
            return;
        }
        // Of another window, Redis has reconciled nothing.
        let is_same = request.number == reply.number;
        let (unreported, returned) = if is_same { (request.unreported, request.returned) } else { (0, 0) };
        self.used = reply.used;
        // Replies may arrive in another order than Redis sent them.
        self.own = reply.own.max(self.own.saturating_sub(returned));
        self.unreported = self.unreported.saturating_sub(unreported);
        self.returned = self.returned.saturating_sub(returned);
    }

    /// Returns what Redis has charged to this instance without its knowledge.
    pub(super) fn return_lost_grants(&mut self, request: &WindowRequest, reply: &WindowReply, grant: u64) {
        // The reply is about a window that has ended; or Redis' clock was set back, and it moved the use along.
        if self.number != reply.number || reply.number < request.number {
            return;
        }
        let is_same = request.number == reply.number;
        let known = if is_same { request.own.saturating_sub(request.returned) } else { 0 };
        self.returned += reply.own.saturating_sub(known + grant);
    }

    /// Starts a window without Redis, if it is later than the known one.
    pub(super) fn start_if_new(&mut self, number: u64) {
        if self.number < number {
            *self = Self { number, ..Self::default() };
        }
    }

    /// What this instance may still use without Redis: its part of the limit less its own use, and at most its part of
    /// what remained at the last reply.
    pub(super) fn part_remaining(&self, limit: u64, fleet: Fleet) -> u64 {
        let Self { used, own, unreported, returned, .. } = *self;
        let of_limit = fleet.part(limit).saturating_sub(own.saturating_sub(returned) + unreported);
        let of_remainder = fleet.part(limit.saturating_sub(used)).saturating_sub(unreported);
        of_limit.min(of_remainder)
    }
}
