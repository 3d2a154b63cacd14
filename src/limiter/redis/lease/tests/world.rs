//! Instances that share a limit in a slow reference of Redis.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::{
    limiter::redis::{
        lease::{KeyState, LeaseOutcome, Reconcile},
        membership::Fleet,
        protocol::{LeaseReply, LeaseRequest, WindowReply, WindowRequest},
    },
    limits::{Charge, PerSpan, Span},
    record::KeyId,
};

/// The time at the start, since 1970.
pub(super) const START: Duration = Duration::from_secs(1_795_600_800);

/// A slow reference of Redis' script: it keeps every charge, and sums them each time.
#[derive(Default)]
pub(super) struct Server(pub(super) Vec<Entry>);

pub(super) struct Entry {
    pub(super) span: Span,
    pub(super) number: u64,
    pub(super) instance: usize,
    pub(super) amount: i64,
}

impl Server {
    pub(super) fn sum(&self, span: Span, number: u64, instance: Option<usize>) -> u64 {
        let of = |entry: &&Entry| {
            (entry.span, entry.number) == (span, number)
                && instance.is_none_or(|instance| instance == entry.instance)
        };
        let sum: i64 = self.0.iter().filter(of).map(|entry| entry.amount).sum();
        sum.try_into().expect("no instance returns more than it was charged")
    }

    pub(super) fn charge(&mut self, instance: usize, request: &LeaseRequest, now: Duration) -> LeaseReply {
        let windows = Span::ALL.into_iter().zip(request.windows);
        let windows: Vec<_> = windows.filter_map(|(span, window)| Some((span, window?))).collect();
        for (span, window) in &windows {
            if window.number == span.number(now) {
                let own = self.sum(*span, window.number, Some(instance));
                let forgotten = window.own.saturating_sub(own);
                let amount = forgotten as i64 - window.returned.min(own + forgotten) as i64;
                self.0.push(Entry { span: *span, number: window.number, instance, amount });
            }
        }
        let left = |(span, window): &(Span, WindowRequest)| {
            window.limit as i64 - self.sum(*span, span.number(now), None) as i64
        };
        let room = windows.iter().map(left).min().unwrap_or(0);
        let fits = request.need > 0 && room >= request.need as i64;
        let ahead = |room: u64| (request.want - request.need).min((room - request.need) / request.part);
        let grant = if fits { request.need + ahead(room as u64) } else { 0 };
        let mut replies = PerSpan::default();
        for (span, _) in windows {
            let number = span.number(now);
            self.0.push(Entry { span, number, instance, amount: grant as i64 });
            let (used, own) = (self.sum(span, number, None), self.sum(span, number, Some(instance)));
            replies[span as usize] = Some(WindowReply { number, used, own });
        }
        LeaseReply { now, grant, windows: replies }
    }
}

/// The fate of a request to Redis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fate {
    Answered,
    LostOnTheWay,
    LostOnTheWayBack,
}

/// Instances, Redis, and the requests that passed in each window.
pub(super) struct World {
    pub(super) begun: Instant,
    pub(super) passed: Duration,
    pub(super) server: Server,
    pub(super) states: Vec<KeyState>,
    pub(super) allowed: HashMap<(Span, u64), u64>,
}

impl World {
    pub(super) fn new(instances: usize) -> Self {
        let states = (0..instances).map(|_| KeyState::default()).collect();
        let (begun, passed) = (Instant::now(), Duration::ZERO);
        Self { begun, passed, server: Server::default(), states, allowed: HashMap::new() }
    }

    pub(super) fn now(&self) -> (Instant, Duration) {
        (self.begun + self.passed, START + self.passed)
    }

    pub(super) fn fleet(&self, instance: usize) -> Fleet {
        Fleet { count: self.states.len() as u64, position: instance as u64 }
    }

    /// A request at an instance. Returns whether it passes.
    pub(super) fn request(&mut self, instance: usize, charge: &Charge, fate: Fate) -> bool {
        let (now, redis_now) = self.now();
        loop {
            match self.states[instance].take(charge, now, redis_now) {
                LeaseOutcome::Allowed(_) => {
                    self.allow(charge);
                    return true;
                }
                LeaseOutcome::Refused(_) => return false,
                LeaseOutcome::Insufficient => {}
            }
            let fleet = self.fleet(instance);
            self.states[instance].add_waiting(charge);
            let request = self.states[instance].request_lease(charge, fleet, now);
            if !self.send(instance, &request, fate, |state, reply| {
                state.apply_lease(charge, &request, reply, now)
            }) {
                return false;
            }
        }
    }

    pub(super) fn part(&mut self, instance: usize, charge: &Charge) -> bool {
        let (now, redis_now) = self.now();
        let fleet = self.fleet(instance);
        let state = &mut self.states[instance];
        let passes = matches!(state.take(charge, now, redis_now), LeaseOutcome::Allowed(_))
            || state.charge_part(charge, fleet, redis_now).is_ok();
        if passes {
            self.allow(charge);
        }
        passes
    }

    pub(super) fn reconcile(&mut self, instance: usize, what: Reconcile) {
        let now = self.now().0;
        if let Some(request) = self.states[instance].reconciliation(KeyId(7), now, what) {
            self.send(instance, &request, Fate::Answered, |state, reply| {
                state.apply_reconciliation(&request, reply)
            });
        }
    }

    pub(super) fn send(
        &mut self,
        instance: usize,
        request: &LeaseRequest,
        fate: Fate,
        apply: impl FnOnce(&mut KeyState, &LeaseReply),
    ) -> bool {
        let now = self.now().1;
        if fate != Fate::LostOnTheWay {
            let reply = self.server.charge(instance, request, now);
            if fate == Fate::Answered {
                apply(&mut self.states[instance], &reply);
                return true;
            }
        }
        self.states[instance].fail_request();
        false
    }

    pub(super) fn allow(&mut self, charge: &Charge) {
        for (span, limit) in charge.limited() {
            let allowed = self.allowed.entry((span, span.number(START + self.passed))).or_default();
            *allowed += charge.cost();
            assert!(*allowed <= limit, "{allowed} of {limit} a {}", span.name());
        }
    }

    pub(super) fn allowed(&self, span: Span) -> u64 {
        self.allowed.get(&(span, span.number(self.now().1))).copied().unwrap_or(0)
    }
}
