//! Every metric that Keystile exports is declared here and counted elsewhere.
//!
//! A component takes its handles when it is built. To count is then one atomic addition. Label values come from closed
//! sets, so the number of series is bounded.

use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram};
use metrics_exporter_prometheus::BuildError;

mod handles;
mod process;
mod registry;
mod table;

pub use handles::{
    CacheLookups, ConnectionMetrics, DatabaseConnections, DurableProofCounts, FirstProofs, InjectorReviews,
    RateLimits, RefusedMessages, TlsHandshakes, TlsMetrics,
};
pub use table::{Kind, Metric, TABLE};

use process::ProcessMetrics;
use registry::Registry;
pub(crate) use table::*;

use crate::{
    dependencies::{Dependency, Reporter, State, States},
    version::{COMMIT, VERSION},
};

/// The process's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    states: Arc<States>,
    process: Arc<ProcessMetrics>,
}

impl Metrics {
    /// Sets up an empty set of metrics.
    ///
    /// # Errors
    /// Never with the table of metrics; the builder's signature has it.
    pub fn new() -> Result<Self, BuildError> {
        let metrics = Self {
            registry: Arc::new(Registry::new(TABLE)?),
            states: Arc::default(),
            process: Arc::new(ProcessMetrics::new()),
        };
        let labels = [("version", VERSION), ("commit", COMMIT.unwrap_or("unknown"))];
        metrics.registry.gauge(BUILD_INFO, &labels).set(1.0);
        Ok(metrics)
    }

    /// The text of `/metrics`.
    pub fn render(&self) -> String {
        self.export_states();
        self.registry.render_with(|| self.process.collect())
    }

    /// A reporter of one dependency, whose state is exported.
    pub fn reporter(&self, dependency: Dependency) -> Reporter {
        self.states.reporter(dependency)
    }

    /// The states of the dependencies.
    pub fn states(&self) -> &States {
        &self.states
    }

    /// `keystile_dependency_up` and `keystile_dependency_fault`.
    fn export_states(&self) {
        self.registry.reset(DEPENDENCY_FAULT);
        for state in self.states.snapshot() {
            let dependency = ("dependency", state.dependency.name());
            let up = self.registry.gauge(DEPENDENCY_UP, &[dependency]);
            up.set(if state.state == State::Down { 0.0 } else { 1.0 });
            for fault in &state.faults {
                self.registry.gauge(DEPENDENCY_FAULT, &[dependency, ("cause", fault.cause)]).set(1.0);
            }
        }
    }

    /// Aggregates the samples of histograms; to be called every few seconds.
    pub fn upkeep(&self) {
        self.registry.upkeep();
    }

    /// The sum of all series of a counter or gauge that have these labels, in whole numbers.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.registry.sum(name, labels)
    }

    /// `keystile_checks_total` for one outcome.
    pub fn checks(&self, decision: &'static str, reason: &'static str) -> Counter {
        self.registry.counter(CHECKS, &[("decision", decision), ("reason", reason)])
    }

    /// `keystile_check_duration_seconds` for one tier.
    pub fn check_duration(&self, tier: &'static str) -> Histogram {
        self.registry.histogram(CHECK_DURATION, &[("tier", tier)])
    }

    /// `keystile_cache_lookups_total` for one tier and kind.
    pub fn cache_lookups(&self, tier: &'static str, kind: &'static str) -> CacheLookups {
        let lookups = |result: &'static str| {
            self.registry.counter(CACHE_LOOKUPS, &[("tier", tier), ("kind", kind), ("result", result)])
        };
        CacheLookups {
            hit: lookups("hit"),
            negative: lookups("negative"),
            miss: lookups("miss"),
            stale: lookups("stale"),
            invalid: lookups("odd"),
        }
    }

    /// `keystile_cache_entries` for one kind.
    pub fn cache_entries(&self, kind: &'static str) -> Gauge {
        self.registry.gauge(CACHE_ENTRIES, &[("kind", kind)])
    }

    /// `keystile_bcrypt_duration_seconds`.
    pub fn bcrypt_duration(&self) -> Histogram {
        self.registry.histogram(BCRYPT_DURATION, &[])
    }

    /// `keystile_bcrypt_waiting`.
    pub fn bcrypt_waiting(&self) -> Gauge {
        self.registry.gauge(BCRYPT_WAITING, &[])
    }

    /// `keystile_store_duration_seconds` for one store and operation.
    pub fn store_duration(&self, store: &'static str, operation: &'static str) -> Histogram {
        self.registry.histogram(STORE_DURATION, &[("store", store), ("operation", operation)])
    }

    /// `keystile_store_errors_total` for one store.
    pub fn store_errors(&self, store: &'static str) -> Counter {
        self.registry.counter(STORE_ERRORS, &[("store", store)])
    }

    /// `keystile_store_up` for one store.
    pub fn store_up(&self, store: &'static str) -> Gauge {
        self.registry.gauge(STORE_UP, &[("store", store)])
    }

    /// `keystile_change_feed_up`.
    pub fn change_feed_up(&self) -> Gauge {
        self.registry.gauge(CHANGE_FEED_UP, &[])
    }

    /// `keystile_change_feed_degraded` for one cause.
    pub fn change_feed_degraded(&self, cause: &'static str) -> Gauge {
        self.registry.gauge(CHANGE_FEED_DEGRADED, &[("cause", cause)])
    }

    /// `keystile_database_older`.
    pub fn database_older(&self) -> Gauge {
        self.registry.gauge(DATABASE_OLDER, &[])
    }

    /// `keystile_invalidations_total` for one source.
    pub fn invalidations(&self, source: &'static str) -> Counter {
        self.registry.counter(INVALIDATIONS, &[("source", source)])
    }

    /// `keystile_revocation_lag_seconds`.
    pub fn revocation_lag(&self) -> Histogram {
        self.registry.histogram(REVOCATION_LAG, &[])
    }

    /// `keystile_usage_pending`.
    pub fn usage_pending(&self) -> Gauge {
        self.registry.gauge(USAGE_PENDING, &[])
    }

    /// `keystile_usage_lost_total`.
    pub fn usage_lost(&self) -> Counter {
        self.registry.counter(USAGE_LOST, &[])
    }

    /// `keystile_durable_proofs_total`.
    pub fn durable_proofs(&self) -> DurableProofCounts {
        let result = |result: &'static str| self.registry.counter(DURABLE_PROOFS, &[("result", result)]);
        DurableProofCounts { written: result("written"), lost: result("lost") }
    }

    /// `keystile_first_proofs_total`.
    pub fn first_proofs(&self) -> FirstProofs {
        let outcome = |outcome: &'static str| self.registry.counter(FIRST_PROOFS, &[("outcome", outcome)]);
        FirstProofs {
            proven: outcome("proven"),
            mismatch: outcome("mismatch"),
            overloaded: outcome("overloaded"),
            too_many_attempts: outcome("too_many_attempts"),
            abandoned: outcome("abandoned"),
        }
    }

    /// `keystile_first_proofs_waiting` of one class.
    pub fn first_proofs_waiting(&self, class: &'static str) -> Gauge {
        self.registry.gauge(FIRST_PROOFS_WAITING, &[("class", class)])
    }

    /// `keystile_rate_limit_total`.
    pub fn rate_limits(&self) -> RateLimits {
        let result = |result: &'static str| self.registry.counter(RATE_LIMIT, &[("result", result)]);
        RateLimits {
            allowed: result("allowed"),
            leased: result("leased"),
            divided: result("divided"),
            limited: result("limited"),
            limited_divided: result("limited_divided"),
            unavailable: result("unavailable"),
        }
    }

    /// `keystile_undecodable_rows_total`.
    pub fn undecodable_rows(&self) -> Counter {
        self.registry.counter(UNDECODABLE_ROWS, &[])
    }

    /// `keystile_unmatchable_entries_total`.
    pub fn unmatchable_entries(&self) -> Counter {
        self.registry.counter(UNMATCHABLE_ENTRIES, &[])
    }

    /// The connections of one listener.
    pub fn connections(&self, listener: &'static str) -> ConnectionMetrics {
        let closed = |reason: &'static str| {
            self.registry.counter(CONNECTIONS_CLOSED, &[("listener", listener), ("reason", reason)])
        };
        ConnectionMetrics {
            open: self.registry.gauge(CONNECTIONS, &[("listener", listener)]),
            no_room: closed("no_room"),
            idle: closed("idle"),
            stalled: closed("stalled"),
            no_preface: closed("no_preface"),
        }
    }

    /// `keystile_checks_in_flight`.
    pub fn checks_in_flight(&self) -> Gauge {
        self.registry.gauge(CHECKS_IN_FLIGHT, &[])
    }

    /// `keystile_tasks`.
    pub fn tasks(&self) -> Gauge {
        self.registry.gauge(TASKS, &[])
    }

    /// The connections to the database and the calls that wait for one.
    pub fn database_connections(&self) -> DatabaseConnections {
        let connections = |state| self.registry.gauge(DATABASE_CONNECTIONS, &[("state", state)]);
        DatabaseConnections {
            used: connections("used"),
            idle: connections("idle"),
            limit: self.registry.gauge(DATABASE_CONNECTIONS_LIMIT, &[]),
            waiting: self.registry.gauge(DATABASE_CALLS_WAITING, &[]),
        }
    }

    /// `keystile_limits_counted` for one of those that count.
    pub fn limits_counted(&self, by: &'static str) -> Gauge {
        self.registry.gauge(LIMITS_COUNTED, &[("by", by)])
    }

    /// `keystile_change_feed_last_read_timestamp_seconds`.
    pub fn change_feed_last_read(&self) -> Gauge {
        self.registry.gauge(CHANGE_FEED_LAST_READ, &[])
    }

    /// `keystile_change_feed_last_change_timestamp_seconds`.
    pub fn change_feed_last_change(&self) -> Gauge {
        self.registry.gauge(CHANGE_FEED_LAST_CHANGE, &[])
    }

    /// `keystile_in_flight_bytes`.
    pub fn in_flight_bytes(&self) -> Gauge {
        self.registry.gauge(IN_FLIGHT_BYTES, &[])
    }

    /// `keystile_messages_refused_total`.
    pub fn refused_messages(&self) -> RefusedMessages {
        let refused = |reason: &'static str| self.registry.counter(MESSAGES_REFUSED, &[("reason", reason)]);
        RefusedMessages {
            too_large: refused("too_large"),
            no_room: refused("no_room"),
            late: refused("late"),
        }
    }

    /// `keystile_truncated_headers_total` for one header.
    pub fn truncated_headers(&self, header: &'static str) -> Counter {
        self.registry.counter(TRUNCATED_HEADERS, &[("header", header)])
    }

    /// The injector's reviews.
    pub fn injector_reviews(&self) -> InjectorReviews {
        let reviews = |result: &'static str| self.registry.counter(INJECTOR_REVIEWS, &[("result", result)]);
        InjectorReviews {
            injected: reviews("injected"),
            untouched: reviews("untouched"),
            refused: reviews("refused"),
            malformed: reviews("malformed"),
            duration: self.registry.histogram(INJECTOR_REVIEW_DURATION, &[]),
        }
    }

    /// `keystile_management_requests_total` for one operation and class of status.
    pub fn management_requests(&self, operation: &'static str, status: &'static str) -> Counter {
        self.registry.counter(MANAGEMENT_REQUESTS, &[("operation", operation), ("status", status)])
    }

    /// The TLS of one listener.
    pub fn tls(&self, listener: &'static str, has_revocation_lists: bool) -> TlsMetrics {
        let labels = [("listener", listener)];
        let next_update = || self.registry.gauge(TLS_CRL_NEXT_UPDATE, &labels);
        TlsMetrics {
            not_after: self.registry.gauge(TLS_CERTIFICATE_NOT_AFTER, &labels),
            next_update: has_revocation_lists.then(next_update),
            errors: self.registry.counter(TLS_RELOAD_ERRORS, &labels),
            handshakes: self.tls_handshakes(listener),
        }
    }

    /// The TLS of the injector's webhook.
    pub fn webhook_tls(&self) -> TlsMetrics {
        TlsMetrics {
            not_after: self.registry.gauge(INJECTOR_CERTIFICATE_NOT_AFTER, &[]),
            next_update: None,
            errors: self.registry.counter(INJECTOR_CERTIFICATE_ERRORS, &[]),
            handshakes: self.tls_handshakes("webhook"),
        }
    }

    fn tls_handshakes(&self, listener: &'static str) -> TlsHandshakes {
        let handshakes = |result: &'static str| {
            self.registry.counter(TLS_HANDSHAKES, &[("listener", listener), ("result", result)])
        };
        TlsHandshakes {
            completed: handshakes("completed"),
            failed: handshakes("failed"),
            late: handshakes("late"),
            no_room: handshakes("no_room"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exported_text_describes_and_counts() {
        let metrics = Metrics::new().expect("builds");
        metrics.checks("deny", "expired").increment(2);
        metrics.check_duration("memory").record(2e-5);
        let text = metrics.render();
        for line in [
            "# TYPE keystile_checks_total counter",
            "keystile_checks_total{decision=\"deny\",reason=\"expired\"} 2",
            "keystile_check_duration_seconds_bucket{tier=\"memory\",le=\"0.000025\"} 1",
        ] {
            assert!(text.contains(line), "{line} in:\n{text}");
        }
        assert!(text.contains("keystile_build_info{version="), "{text}");
    }
}
