//! Handles of metrics that belong together.

use metrics::{Counter, Gauge, Histogram};

/// `keystile_cache_lookups_total` of one cache.
pub struct CacheLookups {
    /// The entry was found.
    pub hit: Counter,
    /// The entry was known not to exist.
    pub negative: Counter,
    /// Nothing was found.
    pub miss: Counter,
    /// An expired entry was served because the lower tier did not respond.
    pub stale: Counter,
    /// An entry was found and not trusted. It counts as a miss.
    pub invalid: Counter,
}

/// `keystile_durable_proofs_total`. Cheap to clone.
#[derive(Clone)]
pub struct DurableProofCounts {
    /// The database stored the proof.
    pub written: Counter,
    /// The database did not store the proof.
    pub lost: Counter,
}

/// `keystile_first_proofs_total`.
pub struct FirstProofs {
    /// The credential belongs to a key.
    pub proven: Counter,
    /// The credential belongs to no key.
    pub mismatch: Counter,
    /// The queue was full, or the deadline passed.
    pub overloaded: Counter,
    /// The same, for a network with too many failures.
    pub too_many_attempts: Counter,
    /// The computation panicked.
    pub abandoned: Counter,
}

/// `keystile_rate_limit_total`.
pub struct RateLimits {
    /// Charged at the check.
    pub allowed: Counter,
    /// Charged in advance, as part of a lease.
    pub leased: Counter,
    /// Allowed within this instance's part while Redis does not respond.
    pub divided: Counter,
    /// A limit was used up.
    pub limited: Counter,
    /// This instance's part of a limit was used up while Redis does not respond.
    pub limited_divided: Counter,
    /// Denied because nothing could count the request.
    pub unavailable: Counter,
}

/// `keystile_injector_reviews_total` and their duration.
pub struct InjectorReviews {
    /// The pod got a patch.
    pub injected: Counter,
    /// The pod was admitted unchanged.
    pub untouched: Counter,
    /// The pod was not admitted.
    pub refused: Counter,
    /// The body was no review that can be answered.
    pub malformed: Counter,
    /// Time from the request to the answer.
    pub duration: Histogram,
}

/// `keystile_connections` and `keystile_connections_closed_total` of one listener.
pub struct ConnectionMetrics {
    /// Open connections.
    pub open: Gauge,
    /// Closed to make room for new ones.
    pub no_room: Counter,
    /// Closed because they had no call for too long.
    pub idle: Counter,
    /// Closed because the peer did not read.
    pub stalled: Counter,
    /// Closed because the peer sent no HTTP/2 preface.
    pub no_preface: Counter,
}

/// `keystile_database_connections` and what belongs to it.
pub struct DatabaseConnections {
    /// Connections that run a statement.
    pub used: Gauge,
    /// Open connections without one.
    pub idle: Gauge,
    /// Maximum number of connections.
    pub limit: Gauge,
    /// Calls that wait for a connection.
    pub waiting: Gauge,
}

/// `keystile_messages_refused_total`.
pub struct RefusedMessages {
    /// The message is over the size limit.
    pub too_large: Counter,
    /// The message made room for others.
    pub no_room: Counter,
    /// The message was incomplete at its deadline.
    pub late: Counter,
}

/// The metrics of the TLS of one listener.
pub struct TlsMetrics {
    /// Expiry of the certificate, in seconds since 1970.
    pub not_after: Gauge,
    /// The earliest next update of the revocation lists, in seconds since 1970. `None` without such lists.
    pub next_update: Option<Gauge>,
    /// Reads of the files that failed.
    pub errors: Counter,
    /// Handshakes.
    pub handshakes: TlsHandshakes,
}

/// `keystile_tls_handshakes_total` of one listener.
pub struct TlsHandshakes {
    /// Handshakes that were completed.
    pub completed: Counter,
    /// Handshakes that failed, for example for the client's certificate.
    pub failed: Counter,
    /// Handshakes that took too long.
    pub late: Counter,
    /// Handshakes that made room for others.
    pub no_room: Counter,
}
