//! The messages between an instance and Redis' scripts. Pure.

use std::time::Duration;

use super::membership::Fleet;
use crate::{
    limits::{Charge, LimitScope, LimitStatus, PerSpan, Span},
    record::KeyId,
};

/// A request to charge a key in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LeaseRequest {
    pub(super) key: KeyId,
    /// Charge at least this, or nothing.
    pub(super) need: u64,
    /// Charge up to this, if enough remains.
    pub(super) want: u64,
    /// Above the need, at most what remains divided by this is charged.
    pub(super) part: u64,
    pub(super) windows: PerSpan<Option<WindowRequest>>,
}

/// What a request says of one window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WindowRequest {
    pub(super) limit: u64,
    /// The window that the instance knows.
    pub(super) number: u64,
    /// This instance's use, as far as it knows.
    pub(super) own: u64,
    /// The part of `own` that the instance returns.
    pub(super) returned: u64,
    /// The part of `own` that Redis is told for the first time.
    pub(super) unreported: u64,
}

/// Redis' reply to a [`LeaseRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeaseReply {
    /// Redis' clock, since 1970.
    pub(super) now: Duration,
    /// The amount that was charged.
    pub(super) grant: u64,
    pub(super) windows: PerSpan<Option<WindowReply>>,
}

/// The state of one window after the charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WindowReply {
    pub(super) number: u64,
    /// Use of all instances.
    pub(super) used: u64,
    /// Use of this instance.
    pub(super) own: u64,
}

/// Redis' reply to a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HeartbeatReply {
    /// Redis' clock, since 1970.
    pub(super) now: Duration,
    /// Whether Redis did not know this instance.
    pub(super) is_new: bool,
    pub(super) fleet: Fleet,
    /// Instances with a heartbeat in the last few seconds.
    pub(super) awake: u64,
}

impl LeaseRequest {
    /// The keys and arguments of the script, in the name of `instance`.
    pub(super) fn arguments(&self, instance: &str) -> (Vec<String>, Vec<String>) {
        let Self { key, need, want, part, windows } = self;
        let mut keys = Vec::with_capacity(windows.len());
        let mut arguments = vec![need.to_string(), want.to_string(), part.to_string(), instance.to_owned()];
        let windows = Span::ALL.into_iter().zip(windows);
        for (span, window) in windows.filter_map(|(span, window)| Some((span, (*window)?))) {
            // The braces keep a key's windows on one server of a cluster.
            keys.push(format!("keystile:{{{}}}:limit:{}", key.0, span.name()));
            let numbers = [span.seconds(), window.limit, window.number, window.own, window.returned];
            arguments.extend(numbers.map(|number| number.to_string()));
        }
        (keys, arguments)
    }
}

impl LeaseReply {
    /// Reads the script's answer to `request`.
    pub(super) fn parse(request: &LeaseRequest, numbers: &[u64]) -> Option<Self> {
        let (&[seconds, micros, grant], rest) = numbers.split_first_chunk()?;
        let mut rest = rest.chunks_exact(3);
        let mut windows = PerSpan::default();
        for (reply, _) in windows.iter_mut().zip(&request.windows).filter(|(_, window)| window.is_some()) {
            let &[number, used, own] = rest.next()? else { return None };
            *reply = Some(WindowReply { number, used, own });
        }
        Some(Self { now: time(seconds, micros), grant, windows })
    }

    pub(super) fn status(&self, charge: &Charge) -> LimitStatus {
        charge
            .status(LimitScope::Redis, |span, limit| (self.remaining(span, limit), self.window_ends_in(span)))
    }

    /// Time until the first of the windows ends.
    pub(super) fn ends_in(&self, charge: &Charge) -> Duration {
        charge.limited().map(|(span, _)| self.window_ends_in(span)).min().unwrap_or_default()
    }

    pub(super) fn remaining(&self, span: Span, limit: u64) -> u64 {
        limit.saturating_sub(self.windows[span as usize].map_or(0, |window| window.used))
    }

    fn window_ends_in(&self, span: Span) -> Duration {
        self.windows[span as usize].map_or(Duration::ZERO, |window| span.ends_in(window.number, self.now))
    }
}

impl HeartbeatReply {
    /// Reads the script's answer.
    pub(super) fn parse(numbers: &[u64]) -> Option<Self> {
        let &[seconds, micros, is_new, count, position, awake] = numbers else { return None };
        let fleet = Fleet { count: count.max(1), position };
        Some(Self { now: time(seconds, micros), is_new: is_new == 1, fleet, awake })
    }
}

fn time(seconds: u64, micros: u64) -> Duration {
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}
