//! The names of all metrics, and their descriptions in `/metrics` and in the documentation.

/// The kind of a metric.
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
    /// The kind.
    pub kind: Kind,
    /// The description.
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
pub(crate) const CHECKS_IN_FLIGHT: &str = "keystile_checks_in_flight";
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
pub(crate) const DEPENDENCY_UP: &str = "keystile_dependency_up";
pub(crate) const DEPENDENCY_FAULT: &str = "keystile_dependency_fault";
pub(crate) const DATABASE_CONNECTIONS: &str = "keystile_database_connections";
pub(crate) const DATABASE_CONNECTIONS_LIMIT: &str = "keystile_database_connections_limit";
pub(crate) const DATABASE_CALLS_WAITING: &str = "keystile_database_calls_waiting";
pub(crate) const CHANGE_FEED_LAST_READ: &str = "keystile_change_feed_last_read_timestamp_seconds";
pub(crate) const CHANGE_FEED_LAST_CHANGE: &str = "keystile_change_feed_last_change_timestamp_seconds";
pub(crate) const CHANGE_FEED_UP: &str = "keystile_change_feed_up";
pub(crate) const CHANGE_FEED_DEGRADED: &str = "keystile_change_feed_degraded";
pub(crate) const DATABASE_OLDER: &str = "keystile_database_older";
pub(crate) const INVALIDATIONS: &str = "keystile_invalidations_total";
pub(crate) const REVOCATION_LAG: &str = "keystile_revocation_lag_seconds";
pub(crate) const USAGE_PENDING: &str = "keystile_usage_pending";
pub(crate) const USAGE_LOST: &str = "keystile_usage_lost_total";
pub(crate) const DURABLE_PROOFS: &str = "keystile_durable_proofs_total";
pub(crate) const TASKS: &str = "keystile_tasks";
pub(crate) const LIMITS_COUNTED: &str = "keystile_limits_counted";
pub(crate) const RATE_LIMIT: &str = "keystile_rate_limit_total";
pub(crate) const INJECTOR_REVIEWS: &str = "keystile_injector_reviews_total";
pub(crate) const INJECTOR_REVIEW_DURATION: &str = "keystile_injector_review_duration_seconds";
pub(crate) const INJECTOR_CERTIFICATE_NOT_AFTER: &str = "keystile_injector_certificate_not_after_seconds";
pub(crate) const INJECTOR_CERTIFICATE_ERRORS: &str = "keystile_injector_certificate_errors_total";
pub(crate) const TLS_CERTIFICATE_NOT_AFTER: &str = "keystile_tls_certificate_not_after_seconds";
pub(crate) const TLS_CRL_NEXT_UPDATE: &str = "keystile_tls_crl_next_update_seconds";
pub(crate) const TLS_RELOAD_ERRORS: &str = "keystile_tls_reload_errors_total";
pub(crate) const TLS_HANDSHAKES: &str = "keystile_tls_handshakes_total";
pub(crate) const MANAGEMENT_REQUESTS: &str = "keystile_management_requests_total";
pub(crate) const CONNECTIONS: &str = "keystile_connections";
pub(crate) const CONNECTIONS_CLOSED: &str = "keystile_connections_closed_total";
pub(crate) const IN_FLIGHT_BYTES: &str = "keystile_in_flight_bytes";
pub(crate) const MESSAGES_REFUSED: &str = "keystile_messages_refused_total";
pub(crate) const TRUNCATED_HEADERS: &str = "keystile_truncated_headers_total";
pub(crate) const UNDECODABLE_ROWS: &str = "keystile_undecodable_rows_total";
pub(crate) const UNMATCHABLE_ENTRIES: &str = "keystile_unmatchable_entries_total";
pub(crate) const BUILD_INFO: &str = "keystile_build_info";

/// All metrics.
pub const TABLE: &[Metric] = &[
    Metric {
        name: CHECKS,
        kind: Kind::Counter,
        help: "Checks answered, by decision (allow, deny, shadow: allowed but reported, error: left to Envoy) and reason (none and anonymous for allow).",
    },
    Metric {
        name: CHECKS_IN_FLIGHT,
        kind: Kind::Gauge,
        help: "Checks that wait for the rest of their message or for a decision. Checks that memory answers do not wait.",
    },
    Metric {
        name: TASKS,
        kind: Kind::Gauge,
        help: "Tasks of the runtime that have not ended: connections, their calls, and Keystile's own.",
    },
    Metric {
        name: CHECK_DURATION,
        kind: Kind::Histogram(CHECK_SECONDS),
        help: "Time from a check's arrival to its answer, by the tier that had the record (none when no record was found).",
    },
    Metric {
        name: CACHE_LOOKUPS,
        kind: Kind::Counter,
        help: "Look-ups in a cache, by tier, kind (records, proofs) and result (hit; negative: known not to exist; miss; stale: an expired entry was served in an outage; odd: an entry in Redis or in the table of proofs was not trusted).",
    },
    Metric {
        name: CACHE_ENTRIES,
        kind: Kind::Gauge,
        help: "Entries in memory, by kind (records, unknown, proofs, refusals).",
    },
    Metric {
        name: BCRYPT_DURATION,
        kind: Kind::Histogram(BCRYPT_SECONDS),
        help: "Duration of one bcrypt computation, without waiting.",
    },
    Metric { name: BCRYPT_WAITING, kind: Kind::Gauge, help: "Proofs that wait for a bcrypt thread." },
    Metric {
        name: FIRST_PROOFS,
        kind: Kind::Counter,
        help: "Credentials without a cached proof, by outcome (proven; mismatch; overloaded: the queue was full or the deadline passed; too_many_attempts: the same, for a network with many failures; abandoned: a bug). Made-up prefixes count like wrong secrets.",
    },
    Metric {
        name: FIRST_PROOFS_WAITING,
        kind: Kind::Gauge,
        help: "Credentials that wait to be proven or refused, by class (clean; one_mark: the prefix or the network has failed lately; two_marks: both have; throttled: the network has many failures). Most of them need no bcrypt.",
    },
    Metric {
        name: DEPENDENCY_UP,
        kind: Kind::Gauge,
        help: "0 if the last attempt to use a dependency failed, otherwise 1, by dependency (database, budgets, change_feed, redis_cache, redis_limits, bcrypt, memory, usage, proofs). Absent where it was not used.",
    },
    Metric {
        name: DEPENDENCY_FAULT,
        kind: Kind::Gauge,
        help: "1 while a dependency fails for a cause, also if only some calls fail, otherwise 0, by dependency and cause. The runbook lists the causes; those of change_feed are those of keystile_change_feed_degraded.",
    },
    Metric {
        name: DATABASE_CONNECTIONS,
        kind: Kind::Gauge,
        help: "Connections to the database, by state (used, idle). The connection that listens for changes is not counted.",
    },
    Metric {
        name: DATABASE_CONNECTIONS_LIMIT,
        kind: Kind::Gauge,
        help: "Maximum number of connections to the database: KEYSTILE_DATABASE_CONNECTIONS.",
    },
    Metric {
        name: DATABASE_CALLS_WAITING,
        kind: Kind::Gauge,
        help: "Look-ups that wait for a connection to the database.",
    },
    Metric {
        name: STORE_DURATION,
        kind: Kind::Histogram(STORE_SECONDS),
        help: "Duration of one call to a store, by store and operation.",
    },
    Metric {
        name: STORE_ERRORS,
        kind: Kind::Counter,
        help: "Calls to a store that failed or missed their deadline, by store.",
    },
    Metric {
        name: STORE_UP,
        kind: Kind::Gauge,
        help: "1 if the store answered the last call, otherwise 0, by store.",
    },
    Metric {
        name: CHANGE_FEED_UP,
        kind: Kind::Gauge,
        help: "1 while the log of changes is read and verified to be complete, so that a changed key is denied within 1 s; otherwise 0: records are then read again after 30 s.",
    },
    Metric {
        name: CHANGE_FEED_DEGRADED,
        kind: Kind::Gauge,
        help: "1 for each cause for which the change feed is not up (unreadable, log_missing, replica, identity, log_empty, triggers, columns, rows_hidden, writes_lost), 0 otherwise.",
    },
    Metric {
        name: CHANGE_FEED_LAST_READ,
        kind: Kind::Gauge,
        help: "Time of the last read of the log of changes, in seconds since 1970. time() minus this is its age.",
    },
    Metric {
        name: CHANGE_FEED_LAST_CHANGE,
        kind: Kind::Gauge,
        help: "Time of the newest change that the feed has seen, in seconds since 1970, by the clock of this machine; 0 if there was none.",
    },
    Metric {
        name: DATABASE_OLDER,
        kind: Kind::Gauge,
        help: "1 if the database, when this process started, lacked a change that an earlier run had seen, as after the restore of a backup: keys that were revoked since may be active again. 0 if not, or if nothing is known.",
    },
    Metric {
        name: INVALIDATIONS,
        kind: Kind::Counter,
        help: "Invalidations of cached records, by source (change: a key or user changed; command: keystile invalidate; gap: all records, because changes may have been missed; hint: updated_at, without a log).",
    },
    Metric {
        name: REVOCATION_LAG,
        kind: Kind::Histogram(LAG_SECONDS),
        help: "Time from the statement that changed a key until this instance dropped it, including the rest of the transaction.",
    },
    Metric {
        name: USAGE_PENDING,
        kind: Kind::Gauge,
        help: "Requests that are counted and not yet written to the database.",
    },
    Metric {
        name: USAGE_LOST,
        kind: Kind::Counter,
        help: "Requests whose count was lost: too many keys were used during an outage of the database, or the key's row refused the update.",
    },
    Metric {
        name: DURABLE_PROOFS,
        kind: Kind::Counter,
        help: "Proofs to be stored for the next start, by result (written; lost: the database did not store them, or there were too many at once).",
    },
    Metric {
        name: RATE_LIMIT,
        kind: Kind::Counter,
        help: "Requests of keys with limits, by result (allowed; leased: allowed by a lease; divided: allowed within this instance's part while Redis does not respond; limited, limited_divided: denied likewise; unavailable: denied because requests could not be counted).",
    },
    Metric {
        name: LIMITS_COUNTED,
        kind: Kind::Gauge,
        help: "1 for the one that counts the limits of keys now, 0 otherwise, by name (upstream: KEYSTILE_RATE_LIMIT is off; local: this instance; redis: Redis for all instances; divided: this instance counts its part, because Redis does not; none: keys with limits are denied).",
    },
    Metric {
        name: UNDECODABLE_ROWS,
        kind: Kind::Counter,
        help: "Key rows that could not be decoded, or have an invalid list or budget. Only the key of the row is denied.",
    },
    Metric {
        name: UNMATCHABLE_ENTRIES,
        kind: Kind::Counter,
        help: "Entries in lists of keys and budgets that match no request, or every request, each time their key was read from the database. keystile doctor finds them.",
    },
    Metric {
        name: CONNECTIONS,
        kind: Kind::Gauge,
        help: "Open connections, by listener (grpc, admin, webhook, management; with _handshakes: unfinished TLS handshakes).",
    },
    Metric {
        name: CONNECTIONS_CLOSED,
        kind: Kind::Counter,
        help: "Connections that Keystile closed, by listener and reason (no_room: closed for a new connection, longest idle first; idle: no call for too long; stalled: the peer did not read; no_preface: the peer sent no HTTP/2 preface).",
    },
    Metric {
        name: IN_FLIGHT_BYTES,
        kind: Kind::Gauge,
        help: "Memory of running calls in bytes: messages that are received in part or wait for a decision, and answers that wait to be read.",
    },
    Metric {
        name: MESSAGES_REFUSED,
        kind: Kind::Counter,
        help: "Checks denied for their message, by reason (too_large: over 16 MiB; no_room: the oldest message made room for others; late: incomplete at the deadline).",
    },
    Metric {
        name: TRUNCATED_HEADERS,
        kind: Kind::Counter,
        help: "Headers that were too long and are sent as !truncated, by header. Counted when an answer is encoded: for most keys, once each time the record is read.",
    },
    Metric {
        name: INJECTOR_REVIEWS,
        kind: Kind::Counter,
        help: "Admission reviews answered by keystile inject, by result (injected, untouched, refused, malformed).",
    },
    Metric {
        name: INJECTOR_REVIEW_DURATION,
        kind: Kind::Histogram(STORE_SECONDS),
        help: "Duration of an admission review.",
    },
    Metric {
        name: INJECTOR_CERTIFICATE_NOT_AFTER,
        kind: Kind::Gauge,
        help: "Expiry of the certificate of keystile inject, in seconds since 1970.",
    },
    Metric {
        name: INJECTOR_CERTIFICATE_ERRORS,
        kind: Kind::Counter,
        help: "Failed reads of the certificate files of keystile inject. The certificate in use stays.",
    },
    Metric {
        name: TLS_CERTIFICATE_NOT_AFTER,
        kind: Kind::Gauge,
        help: "Expiry of the certificate in use, in seconds since 1970, by listener (grpc, admin, management).",
    },
    Metric {
        name: TLS_CRL_NEXT_UPDATE,
        kind: Kind::Gauge,
        help: "Earliest next update of the revocation lists in use, in seconds since 1970, by listener. After it, clients are refused.",
    },
    Metric {
        name: TLS_RELOAD_ERRORS,
        kind: Kind::Counter,
        help: "Failed reads of TLS files, by listener. The files in use stay in use.",
    },
    Metric {
        name: TLS_HANDSHAKES,
        kind: Kind::Counter,
        help: "TLS handshakes, by listener and result (completed; failed: for example a client without a valid certificate; late: over 5 s; no_room: made room for newer ones).",
    },
    Metric {
        name: MANAGEMENT_REQUESTS,
        kind: Kind::Counter,
        help: "Requests to keystile management, by operation (such as create_key; none: no operation was reached) and class of the status (2xx, 4xx, 5xx).",
    },
    Metric {
        name: "process_cpu_seconds_total",
        kind: Kind::Counter,
        help: "User and system CPU time, in whole seconds.",
    },
    Metric {
        name: "process_resident_memory_bytes",
        kind: Kind::Gauge,
        help: "Resident memory size in bytes.",
    },
    Metric { name: "process_virtual_memory_bytes", kind: Kind::Gauge, help: "Virtual memory size in bytes." },
    Metric {
        name: "process_virtual_memory_max_bytes",
        kind: Kind::Gauge,
        help: "Maximum amount of virtual memory available in bytes.",
    },
    Metric { name: "process_open_fds", kind: Kind::Gauge, help: "Number of open file descriptors." },
    Metric { name: "process_max_fds", kind: Kind::Gauge, help: "Maximum number of open file descriptors." },
    Metric { name: "process_threads", kind: Kind::Gauge, help: "Number of OS threads in the process." },
    Metric {
        name: "process_start_time_seconds",
        kind: Kind::Gauge,
        help: "Start time of the process since unix epoch in seconds.",
    },
    Metric { name: BUILD_INFO, kind: Kind::Gauge, help: "Always 1, with version and commit as labels." },
];
