//! What is counted of each check.

use std::time::Duration;

use metrics::{Counter, Histogram};

use super::Decision;
use crate::{
    decision::{Permit, Reason, Tier},
    metrics::{Metrics, RefusedMessages},
};

/// Handles of the metrics, taken once.
pub(super) struct Counts {
    allowed: Counter,
    anonymous: Counter,
    deferred: Counter,
    denied: ByReason,
    shadowed: ByReason,
    durations: [(Option<Tier>, Histogram); 4],
    pub(super) refused: RefusedMessages,
}

struct ByReason(Vec<(Reason, Counter)>);

impl Counts {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let duration = |tier: Option<Tier>| (tier, metrics.check_duration(tier.map_or("none", Tier::name)));
        Self {
            allowed: metrics.checks("allow", "none"),
            anonymous: metrics.checks("allow", "anonymous"),
            deferred: metrics.checks("error", Reason::Unavailable.code()),
            denied: ByReason::new("deny", metrics),
            shadowed: ByReason::new("shadow", metrics),
            durations: [None, Some(Tier::Memory), Some(Tier::Redis), Some(Tier::Database)].map(duration),
            refused: metrics.refused_messages(),
        }
    }

    /// Counts a denial of which nothing else is known.
    pub(super) fn denied(&self, reason: Reason) {
        self.denied.count(reason);
    }

    pub(super) fn count(&self, decision: &Decision, elapsed: Duration) {
        match decision {
            Decision::Allow(Permit::Key(_)) => self.allowed.increment(1),
            Decision::Allow(Permit::Anonymous) => self.anonymous.increment(1),
            Decision::Deny(denial) => self.denied.count(denial.reason),
            Decision::Shadow(denial) => self.shadowed.count(denial.reason),
            Decision::Defer(_) => self.deferred.increment(1),
        }
        let tier = decision.proven().map(|proven| proven.tier);
        let histogram = self.durations.iter().find(|(of, _)| *of == tier);
        histogram.iter().for_each(|(_, histogram)| histogram.record(elapsed));
    }
}

impl ByReason {
    fn new(decision: &'static str, metrics: &Metrics) -> Self {
        Self(Reason::ALL.map(|reason| (reason, metrics.checks(decision, reason.code()))).into())
    }

    fn count(&self, reason: Reason) {
        let counter = self.0.iter().find(|(of, _)| *of == reason);
        counter.iter().for_each(|(_, counter)| counter.increment(1));
    }
}
