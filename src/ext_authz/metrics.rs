//! The metrics of checks.

use std::time::Duration;

use metrics::{Counter, Histogram};

use super::outcome::{Admission, Outcome, PerReason};
use crate::{
    decision::{Reason, Tier},
    metrics::{Metrics, RefusedMessages},
};

/// Handles of the metrics, taken once.
pub(super) struct CheckMetrics {
    allowed: Counter,
    anonymous: Counter,
    deferred: Counter,
    denied: PerReason<Counter>,
    shadowed: PerReason<Counter>,
    durations: [(Option<Tier>, Histogram); 4],
    pub(super) refused: RefusedMessages,
}

impl CheckMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let duration = |tier: Option<Tier>| (tier, metrics.check_duration(tier.map_or("none", Tier::name)));
        Self {
            allowed: metrics.checks("allow", "none"),
            anonymous: metrics.checks("allow", "anonymous"),
            deferred: metrics.checks("error", Reason::Unavailable.code()),
            denied: PerReason::new(|reason| metrics.checks("deny", reason.code())),
            shadowed: PerReason::new(|reason| metrics.checks("shadow", reason.code())),
            durations: [None, Some(Tier::Memory), Some(Tier::Redis), Some(Tier::Database)].map(duration),
            refused: metrics.refused_messages(),
        }
    }

    /// Counts a denial without a decision.
    pub(super) fn count_denied(&self, reason: Reason) {
        self.denied[reason].increment(1);
    }

    /// Counts a check that took this long.
    pub(super) fn count(&self, outcome: &Outcome, elapsed: Duration) {
        match outcome {
            Outcome::Allow(Admission::Key(_)) => self.allowed.increment(1),
            Outcome::Allow(Admission::Anonymous) => self.anonymous.increment(1),
            Outcome::Deny(denial) => self.count_denied(denial.reason),
            Outcome::Allow(Admission::Shadow(denial)) => self.shadowed[denial.reason].increment(1),
            Outcome::Defer(_) => self.deferred.increment(1),
        }
        let tier = outcome.proven().map(|proven| proven.tier);
        let histogram = self.durations.iter().find(|(of, _)| *of == tier);
        histogram.iter().for_each(|(_, histogram)| histogram.record(elapsed));
    }
}
