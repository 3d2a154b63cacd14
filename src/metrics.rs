//! Every metric that Keystile exports: declared here, counted elsewhere.
//!
//! Whoever counts takes a handle once, when it is built; counting is then one atomic addition.
//! Labels come from closed sets, so the number of series is bounded.

use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram, Unit};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

/// The process's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
}

/// `keystile_cache_lookups_total` of one cache.
pub struct CacheLookups {
    /// It was there.
    pub hit: Counter,
    /// It was known not to be.
    pub negative: Counter,
    /// Nothing was known.
    pub miss: Counter,
    /// It was there, past its time, and served because nothing below answered.
    pub stale: Counter,
    /// Something was there that could not be believed: as good as a miss.
    pub invalid: Counter,
}

/// `keystile_durable_proofs_total`. Cheap to clone.
#[derive(Clone)]
pub struct DurableProofCounts {
    /// The database has it.
    pub written: Counter,
    /// The database does not have it.
    pub lost: Counter,
}

/// `keystile_first_proofs_total`.
pub struct FirstProofs {
    /// It belongs to a key.
    pub proven: Counter,
    /// It belongs to none.
    pub mismatch: Counter,
    /// There was no room for it, or no time.
    pub overloaded: Counter,
    /// The same, for a network that failed too often.
    pub too_many_attempts: Counter,
    /// Its computation panicked.
    pub abandoned: Counter,
}

/// `keystile_rate_limit_total`.
pub struct RateLimits {
    /// Charged at the check.
    pub allowed: Counter,
    /// Charged ahead, in a share.
    pub leased: Counter,
    /// Let through within this process's part, since Redis did not answer.
    pub divided: Counter,
    /// A limit was used up.
    pub limited: Counter,
    /// This process's part of a limit was used up, since Redis did not answer.
    pub limited_divided: Counter,
    /// Nobody counted, and so denied.
    pub unavailable: Counter,
}

/// `keystile_injector_reviews_total` and their duration.
pub struct InjectorReviews {
    /// The pod got a patch.
    pub injected: Counter,
    /// Let in as it came.
    pub untouched: Counter,
    /// The pod was not let in.
    pub refused: Counter,
    /// It was no question that can be answered.
    pub malformed: Counter,
    /// Time to the answer.
    pub duration: Histogram,
}

/// `keystile_connections` of one listener, and what becomes of them.
pub struct ConnectionMetrics {
    /// How many there are.
    pub open: Gauge,
    /// Closed to make room for others.
    pub no_room: Counter,
    /// Closed since there was no call for long.
    pub idle: Counter,
    /// Closed since the peer did not read.
    pub stalled: Counter,
    /// Closed since it did not begin.
    pub no_preface: Counter,
}

/// `keystile_messages_refused_total`.
pub struct RefusedMessages {
    /// Larger than any that is read.
    pub too_large: Counter,
    /// It had to make room for others.
    pub no_room: Counter,
    /// It was not there at its deadline.
    pub late: Counter,
}

/// What is exported of the injector's certificate.
pub struct InjectorCertificate {
    /// When it ends, in seconds since 1970.
    pub not_after: Gauge,
    /// Looks at its files that failed.
    pub errors: Counter,
}

/// What a metric counts in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Distribution, in seconds.
    Histogram(&'static [f64]),
}

/// A metric as `/metrics` and docs/reference/metrics.md describe it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    /// Full name.
    pub name: &'static str,
    /// What it is counted in.
    pub kind: Kind,
    /// What it says.
    pub help: &'static str,
}

const CHECK_SECONDS: &[f64] = &[
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5,
];
const BCRYPT_SECONDS: &[f64] = &[1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5];
const STORE_SECONDS: &[f64] =
    &[1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0];

const LAG_SECONDS: &[f64] =
    &[1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

const CHECKS: &str = "keystile_checks_total";
const CHECK_DURATION: &str = "keystile_check_duration_seconds";
const CACHE_LOOKUPS: &str = "keystile_cache_lookups_total";
const CACHE_ENTRIES: &str = "keystile_cache_entries";
const BCRYPT_DURATION: &str = "keystile_bcrypt_duration_seconds";
const BCRYPT_WAITING: &str = "keystile_bcrypt_waiting";
const FIRST_PROOFS: &str = "keystile_first_proofs_total";
const FIRST_PROOFS_WAITING: &str = "keystile_first_proofs_waiting";
const STORE_DURATION: &str = "keystile_store_duration_seconds";
const STORE_ERRORS: &str = "keystile_store_errors_total";
const STORE_UP: &str = "keystile_store_up";
const CHANGE_FEED_UP: &str = "keystile_change_feed_up";
const CHANGE_FEED_DEGRADED: &str = "keystile_change_feed_degraded";
const INVALIDATIONS: &str = "keystile_invalidations_total";
const REVOCATION_LAG: &str = "keystile_revocation_lag_seconds";
const USAGE_PENDING: &str = "keystile_usage_pending";
const USAGE_LOST: &str = "keystile_usage_lost_total";
const DURABLE_PROOFS: &str = "keystile_durable_proofs_total";
const RATE_LIMIT: &str = "keystile_rate_limit_total";
const INJECTOR_REVIEWS: &str = "keystile_injector_reviews_total";
const INJECTOR_REVIEW_DURATION: &str = "keystile_injector_review_duration_seconds";
const INJECTOR_CERTIFICATE_NOT_AFTER: &str = "keystile_injector_certificate_not_after_seconds";
const INJECTOR_CERTIFICATE_ERRORS: &str = "keystile_injector_certificate_errors_total";
const CONNECTIONS: &str = "keystile_connections";
const CONNECTIONS_CLOSED: &str = "keystile_connections_closed_total";
const IN_FLIGHT_BYTES: &str = "keystile_in_flight_bytes";
const MESSAGES_REFUSED: &str = "keystile_messages_refused_total";
const TRUNCATED_HEADERS: &str = "keystile_truncated_headers_total";
const UNDECODABLE_ROWS: &str = "keystile_undecodable_rows_total";
const BUILD_INFO: &str = "keystile_build_info";

/// Every metric there is.
pub const TABLE: &[Metric] = &[
    Metric {
        name: CHECKS,
        kind: Kind::Counter,
        help: "Checks answered, by decision (allow, deny, shadow: allowed but reported, error: left to Envoy) and reason (none and anonymous for allow).",
    },
    Metric {
        name: CHECK_DURATION,
        kind: Kind::Histogram(CHECK_SECONDS),
        help: "Time from a check's arrival to its answer, by the tier that had the record (none when no record was found).",
    },
    Metric {
        name: CACHE_LOOKUPS,
        kind: Kind::Counter,
        help: "Look-ups in a cache, by tier, kind (records, proofs) and result (hit, negative, miss; stale: a miss that was served all the same, in an outage; odd: in Redis or the table of proofs, and not to be believed).",
    },
    Metric {
        name: CACHE_ENTRIES,
        kind: Kind::Gauge,
        help: "Entries in memory, by kind (records, unknown, proofs, refusals).",
    },
    Metric {
        name: BCRYPT_DURATION,
        kind: Kind::Histogram(BCRYPT_SECONDS),
        help: "Time that one bcrypt computation took, waiting excluded.",
    },
    Metric { name: BCRYPT_WAITING, kind: Kind::Gauge, help: "Proofs that wait for a bcrypt thread." },
    Metric {
        name: FIRST_PROOFS,
        kind: Kind::Counter,
        help: "Credentials that were not known to be right or wrong, by outcome (proven, mismatch; overloaded: no room or no time; too_many_attempts: the same, for a network with many failures; abandoned: a bug). Made-up prefixes count as wrong secrets do.",
    },
    Metric {
        name: FIRST_PROOFS_WAITING,
        kind: Kind::Gauge,
        help: "Credentials that wait to be proven or refused, by class (clean; one_mark: the prefix or the network has failed lately; two_marks: both have; throttled: the network has many failures). Most of them need no bcrypt.",
    },
    Metric {
        name: STORE_DURATION,
        kind: Kind::Histogram(STORE_SECONDS),
        help: "Time that one call to a store took, by store and operation.",
    },
    Metric {
        name: STORE_ERRORS,
        kind: Kind::Counter,
        help: "Calls to a store that failed or missed their deadline, by store.",
    },
    Metric {
        name: STORE_UP,
        kind: Kind::Gauge,
        help: "1 while the last call to the store was answered, 0 while it was not, by store.",
    },
    Metric {
        name: CHANGE_FEED_UP,
        kind: Kind::Gauge,
        help: "1 while the log of changes is read and verified to be complete, so that a changed key is denied within 1 s; 0 otherwise: then records are read again after 30 s.",
    },
    Metric {
        name: CHANGE_FEED_DEGRADED,
        kind: Kind::Gauge,
        help: "1 for each cause for which the change feed is not up (unreadable, log_missing, replica, identity, log_empty, triggers, columns, rows_hidden, writes_lost), 0 otherwise.",
    },
    Metric {
        name: INVALIDATIONS,
        kind: Kind::Counter,
        help: "What was dropped from memory, by source (change: a key or user changed; command: keystile invalidate; gap: everything, after changes may have been missed; hint: updated_at, where there is no log).",
    },
    Metric {
        name: REVOCATION_LAG,
        kind: Kind::Histogram(LAG_SECONDS),
        help: "Time from the statement that changed a key to its being dropped here, the wait for the end of its transaction included.",
    },
    Metric {
        name: USAGE_PENDING,
        kind: Kind::Gauge,
        help: "Requests that are counted and not yet written to the database.",
    },
    Metric {
        name: USAGE_LOST,
        kind: Kind::Counter,
        help: "Requests that were not counted: too many keys were used while the database did not take them, or the row of their key refused its update.",
    },
    Metric {
        name: DURABLE_PROOFS,
        kind: Kind::Counter,
        help: "Proofs that were to outlive a restart, by result (written; lost: the database did not take them, or there were too many at once).",
    },
    Metric {
        name: RATE_LIMIT,
        kind: Kind::Counter,
        help: "Requests of keys with limits, by result (allowed; leased: allowed from a share taken ahead; divided: allowed within this process's part while Redis does not answer; limited, limited_divided: denied likewise; unavailable: denied since nobody counts).",
    },
    Metric {
        name: UNDECODABLE_ROWS,
        kind: Kind::Counter,
        help: "Key rows read that could not be decoded, or had a list or a budget that is not one; each denies its key alone.",
    },
    Metric {
        name: CONNECTIONS,
        kind: Kind::Gauge,
        help: "Open connections, by listener (grpc, admin, webhook).",
    },
    Metric {
        name: CONNECTIONS_CLOSED,
        kind: Kind::Counter,
        help: "Connections that Keystile closed, by listener and reason (no_room: the longest without a call made room for a new one; idle: no call for long; stalled: the peer did not read; no_preface: it did not begin).",
    },
    Metric {
        name: IN_FLIGHT_BYTES,
        kind: Kind::Gauge,
        help: "Bytes that calls hold which are not answered at once: messages received in part or waiting for a decision, answers waiting to be read.",
    },
    Metric {
        name: MESSAGES_REFUSED,
        kind: Kind::Counter,
        help: "Checks denied for their message, by reason (too_large: over 16 MiB; no_room: the oldest made room for others; late: not received at the deadline).",
    },
    Metric {
        name: TRUNCATED_HEADERS,
        kind: Kind::Counter,
        help: "Headers whose value was too long and is sent as !truncated, by header; counted when an answer is encoded, which for most keys is once each time the record is read.",
    },
    Metric {
        name: INJECTOR_REVIEWS,
        kind: Kind::Counter,
        help: "Questions of the API server answered by keystile inject, by result (injected, untouched, refused, malformed).",
    },
    Metric {
        name: INJECTOR_REVIEW_DURATION,
        kind: Kind::Histogram(STORE_SECONDS),
        help: "Time that keystile inject took for an answer.",
    },
    Metric {
        name: INJECTOR_CERTIFICATE_NOT_AFTER,
        kind: Kind::Gauge,
        help: "When the certificate of keystile inject ends, in seconds since 1970.",
    },
    Metric {
        name: INJECTOR_CERTIFICATE_ERRORS,
        kind: Kind::Counter,
        help: "Looks of keystile inject at its certificate's files that failed; the certificate in use stays.",
    },
    Metric { name: BUILD_INFO, kind: Kind::Gauge, help: "Always 1; version and commit are its labels." },
];

impl Metrics {
    /// Sets up an empty set of metrics.
    ///
    /// # Errors
    /// Never with the table above; the builder's signature has it.
    pub fn new() -> Result<Self, BuildError> {
        let mut builder = PrometheusBuilder::new();
        for metric in TABLE {
            if let Kind::Histogram(buckets) = metric.kind {
                builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.into()), buckets)?;
            }
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        let metrics = Self { recorder: Arc::new(recorder), handle };
        metrics.describe();
        metrics.with(|| {
            let commit = option_env!("KEYSTILE_COMMIT").unwrap_or("unknown");
            metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION"), "commit" => commit).set(1.0);
        });
        Ok(metrics)
    }

    /// The text that `/metrics` answers with.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds what histograms have collected; to be called every few seconds.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// `keystile_checks_total` for one outcome.
    pub fn checks(&self, decision: &'static str, reason: &'static str) -> Counter {
        self.with(|| metrics::counter!(CHECKS, "decision" => decision, "reason" => reason))
    }

    /// `keystile_check_duration_seconds` for one tier.
    pub fn check_duration(&self, tier: &'static str) -> Histogram {
        self.with(|| metrics::histogram!(CHECK_DURATION, "tier" => tier))
    }

    /// `keystile_cache_lookups_total` for one tier and kind.
    pub fn cache_lookups(&self, tier: &'static str, kind: &'static str) -> CacheLookups {
        let lookups = |result: &'static str| {
            self.with(|| metrics::counter!(CACHE_LOOKUPS, "tier" => tier, "kind" => kind, "result" => result))
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
        self.with(|| metrics::gauge!(CACHE_ENTRIES, "kind" => kind))
    }

    /// `keystile_bcrypt_duration_seconds`.
    pub fn bcrypt_duration(&self) -> Histogram {
        self.with(|| metrics::histogram!(BCRYPT_DURATION))
    }

    /// `keystile_bcrypt_waiting`.
    pub fn bcrypt_waiting(&self) -> Gauge {
        self.with(|| metrics::gauge!(BCRYPT_WAITING))
    }

    /// `keystile_store_duration_seconds` for one store and operation.
    pub fn store_duration(&self, store: &'static str, operation: &'static str) -> Histogram {
        self.with(|| metrics::histogram!(STORE_DURATION, "store" => store, "operation" => operation))
    }

    /// `keystile_store_errors_total` for one store.
    pub fn store_errors(&self, store: &'static str) -> Counter {
        self.with(|| metrics::counter!(STORE_ERRORS, "store" => store))
    }

    /// `keystile_store_up` for one store.
    pub fn store_up(&self, store: &'static str) -> Gauge {
        self.with(|| metrics::gauge!(STORE_UP, "store" => store))
    }

    /// `keystile_change_feed_up`.
    pub fn change_feed_up(&self) -> Gauge {
        self.with(|| metrics::gauge!(CHANGE_FEED_UP))
    }

    /// `keystile_change_feed_degraded` for one cause.
    pub fn change_feed_degraded(&self, cause: &'static str) -> Gauge {
        self.with(|| metrics::gauge!(CHANGE_FEED_DEGRADED, "cause" => cause))
    }

    /// `keystile_invalidations_total` for one source.
    pub fn invalidations(&self, source: &'static str) -> Counter {
        self.with(|| metrics::counter!(INVALIDATIONS, "source" => source))
    }

    /// `keystile_revocation_lag_seconds`.
    pub fn revocation_lag(&self) -> Histogram {
        self.with(|| metrics::histogram!(REVOCATION_LAG))
    }

    /// `keystile_usage_pending`.
    pub fn usage_pending(&self) -> Gauge {
        self.with(|| metrics::gauge!(USAGE_PENDING))
    }

    /// `keystile_usage_lost_total`.
    pub fn usage_lost(&self) -> Counter {
        self.with(|| metrics::counter!(USAGE_LOST))
    }

    /// `keystile_durable_proofs_total`.
    pub fn durable_proofs(&self) -> DurableProofCounts {
        let result =
            |result: &'static str| self.with(|| metrics::counter!(DURABLE_PROOFS, "result" => result));
        DurableProofCounts { written: result("written"), lost: result("lost") }
    }

    /// `keystile_first_proofs_total`.
    pub fn first_proofs(&self) -> FirstProofs {
        let outcome =
            |outcome: &'static str| self.with(|| metrics::counter!(FIRST_PROOFS, "outcome" => outcome));
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
        self.with(|| metrics::gauge!(FIRST_PROOFS_WAITING, "class" => class))
    }

    /// `keystile_rate_limit_total`.
    pub fn rate_limits(&self) -> RateLimits {
        let result = |result: &'static str| self.with(|| metrics::counter!(RATE_LIMIT, "result" => result));
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
        self.with(|| metrics::counter!(UNDECODABLE_ROWS))
    }

    /// What is exported of one listener's connections.
    pub fn connections(&self, listener: &'static str) -> ConnectionMetrics {
        let closed = |reason: &'static str| {
            self.with(|| metrics::counter!(CONNECTIONS_CLOSED, "listener" => listener, "reason" => reason))
        };
        ConnectionMetrics {
            open: self.with(|| metrics::gauge!(CONNECTIONS, "listener" => listener)),
            no_room: closed("no_room"),
            idle: closed("idle"),
            stalled: closed("stalled"),
            no_preface: closed("no_preface"),
        }
    }

    /// `keystile_in_flight_bytes`.
    pub fn in_flight_bytes(&self) -> Gauge {
        self.with(|| metrics::gauge!(IN_FLIGHT_BYTES))
    }

    /// `keystile_messages_refused_total`.
    pub fn refused_messages(&self) -> RefusedMessages {
        let refused =
            |reason: &'static str| self.with(|| metrics::counter!(MESSAGES_REFUSED, "reason" => reason));
        RefusedMessages {
            too_large: refused("too_large"),
            no_room: refused("no_room"),
            late: refused("late"),
        }
    }

    /// `keystile_truncated_headers_total` for one header.
    pub fn truncated_headers(&self, header: &'static str) -> Counter {
        self.with(|| metrics::counter!(TRUNCATED_HEADERS, "header" => header))
    }

    /// The injector's reviews.
    pub fn injector_reviews(&self) -> InjectorReviews {
        let reviews =
            |result: &'static str| self.with(|| metrics::counter!(INJECTOR_REVIEWS, "result" => result));
        InjectorReviews {
            injected: reviews("injected"),
            untouched: reviews("untouched"),
            refused: reviews("refused"),
            malformed: reviews("malformed"),
            duration: self.with(|| metrics::histogram!(INJECTOR_REVIEW_DURATION)),
        }
    }

    /// The injector's certificate.
    pub fn injector_certificate(&self) -> InjectorCertificate {
        InjectorCertificate {
            not_after: self.with(|| metrics::gauge!(INJECTOR_CERTIFICATE_NOT_AFTER)),
            errors: self.with(|| metrics::counter!(INJECTOR_CERTIFICATE_ERRORS)),
        }
    }

    fn describe(&self) {
        self.with(|| {
            for Metric { name, kind, help } in TABLE {
                match kind {
                    Kind::Counter => metrics::describe_counter!(*name, *help),
                    Kind::Gauge => metrics::describe_gauge!(*name, *help),
                    Kind::Histogram(_) => metrics::describe_histogram!(*name, Unit::Seconds, *help),
                }
            }
        });
    }

    /// Runs `register` against our own recorder: no global one, so that tests do not share counts.
    fn with<T>(&self, register: impl FnOnce() -> T) -> T {
        metrics::with_local_recorder(&*self.recorder, register)
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
