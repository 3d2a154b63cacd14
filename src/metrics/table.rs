//! The names of all metrics, and their descriptions in `/metrics` and in the documentation.

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

/// A metric as `/metrics` and the README's table describe it.
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

pub(crate) const CHECKS: &str = "keystile_checks_total";
pub(crate) const CHECK_DURATION: &str = "keystile_check_duration_seconds";
pub(crate) const CACHE_LOOKUPS: &str = "keystile_cache_lookups_total";
pub(crate) const CACHE_ENTRIES: &str = "keystile_cache_entries";
pub(crate) const BCRYPT_DURATION: &str = "keystile_bcrypt_duration_seconds";
pub(crate) const BCRYPT_WAITING: &str = "keystile_bcrypt_waiting";
pub(crate) const FIRST_PROOFS: &str = "keystile_first_proofs_total";
pub(crate) const FIRST_PROOFS_WAITING: &str = "keystile_first_proofs_waiting";
pub(crate) const STORE_DURATION: &str = "keystile_store_duration_seconds";
pub(crate) const STORE_ERRORS: &str = "keystile_store_errors_total";
pub(crate) const STORE_UP: &str = "keystile_store_up";
pub(crate) const CHANGE_FEED_UP: &str = "keystile_change_feed_up";
pub(crate) const CHANGE_FEED_DEGRADED: &str = "keystile_change_feed_degraded";
pub(crate) const INVALIDATIONS: &str = "keystile_invalidations_total";
pub(crate) const REVOCATION_LAG: &str = "keystile_revocation_lag_seconds";
pub(crate) const USAGE_PENDING: &str = "keystile_usage_pending";
pub(crate) const USAGE_LOST: &str = "keystile_usage_lost_total";
pub(crate) const DURABLE_PROOFS: &str = "keystile_durable_proofs_total";
pub(crate) const RATE_LIMIT: &str = "keystile_rate_limit_total";
pub(crate) const INJECTOR_REVIEWS: &str = "keystile_injector_reviews_total";
pub(crate) const INJECTOR_REVIEW_DURATION: &str = "keystile_injector_review_duration_seconds";
pub(crate) const INJECTOR_CERTIFICATE_NOT_AFTER: &str = "keystile_injector_certificate_not_after_seconds";
pub(crate) const INJECTOR_CERTIFICATE_ERRORS: &str = "keystile_injector_certificate_errors_total";
pub(crate) const CONNECTIONS: &str = "keystile_connections";
pub(crate) const CONNECTIONS_CLOSED: &str = "keystile_connections_closed_total";
pub(crate) const IN_FLIGHT_BYTES: &str = "keystile_in_flight_bytes";
pub(crate) const MESSAGES_REFUSED: &str = "keystile_messages_refused_total";
pub(crate) const TRUNCATED_HEADERS: &str = "keystile_truncated_headers_total";
pub(crate) const UNDECODABLE_ROWS: &str = "keystile_undecodable_rows_total";
pub(crate) const BUILD_INFO: &str = "keystile_build_info";

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
