//! The heartbeat: reports to Redis that this instance runs, and learns Redis' clock and the other instances.

use std::sync::atomic::Ordering;

use super::{Inner, availability::RedisState, protocol::HeartbeatReply};
use crate::{clock, resilience::CallError};

impl Inner {
    /// Sends one heartbeat and applies the reply. Returns whether Redis replied.
    pub(super) async fn heartbeat(&self) -> bool {
        let answer = self.scripts.heartbeat().await;
        match &answer {
            Ok(_) => self.reporter.works(),
            Err(error) => self.reporter.fails(error.cause(), error.problem()),
        }
        let Ok(reply) = self.check_answer(answer) else { return false };
        let HeartbeatReply { now, is_new, fleet, awake } = reply;
        self.clock.set(now, clock::monotonic());
        let before = self.membership.fleet();
        let state = match before {
            // This instance has allowed nothing that Redis does not know.
            None => RedisState::First,
            Some(_) if is_new => RedisState::Reset,
            Some(_) => RedisState::Intact,
        };
        if self.availability.mark_found(state, clock::monotonic()) {
            self.needs_full_report.store(true, Ordering::Relaxed);
        } else if before.is_some_and(|before| awake < before.count) {
            // An instance that is not back continues with its part, which Redis does not count.
            self.availability.extend_recovery(clock::monotonic());
        }
        // A restarted Redis learns of the instances one after another. Until then, the last known fleet holds.
        if self.availability.is_up(clock::monotonic()) {
            self.membership.set(fleet);
        }
        true
    }
}
