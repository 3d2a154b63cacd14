//! The cluster of Keystile.

use envoy_types::pb::envoy::service::auth::v3::authorization_server::SERVICE_NAME;

use super::rule::{Fault, GENERATORS, ISTIO, NONE, Rule};
use crate::{
    envoy_config::config::{Call, Cluster, Config, Endpoint, Transport},
    findings::Severity::{self, Error, Warning},
};

/// Envoy's default for the number of requests at the same time.
const DEFAULT_REQUESTS: f64 = 1024.0;

pub(super) const RULES: &[Rule] = &[
    Rule {
        code: "cluster_missing",
        severities: &[Error],
        meaning: "the cluster that is asked does not exist, so every request is denied, though Envoy accepts the configuration",
        fix: "correct envoy_grpc.cluster_name, or add the cluster",
        not_settable: NONE,
        examine: cluster_missing,
    },
    Rule {
        code: "cluster_not_http2",
        severities: &[Error],
        meaning: "the cluster does not speak HTTP/2, which gRPC needs, so every check fails",
        fix: "set explicit_http_config.http2_protocol_options in the cluster's HttpProtocolOptions",
        not_settable: NONE,
        examine: cluster_not_http2,
    },
    Rule {
        code: "plain_text",
        severities: &[Warning],
        meaning: "API keys cross the network to Keystile without TLS",
        fix: "give the cluster a transport_socket with TLS, or keep the connection on a network that encrypts, or on a Unix socket",
        not_settable: NONE,
        examine: plain_text,
    },
    Rule {
        code: "tls_unverified",
        severities: &[Error],
        meaning: "Envoy accepts every certificate, so another server on the way can take API keys and allow every request",
        fix: "give common_tls_context a validation_context with trusted_ca and match_typed_subject_alt_names",
        not_settable: NONE,
        examine: tls_unverified,
    },
    Rule {
        code: "circuit_breaker_low",
        severities: &[Warning],
        meaning: "at most 1024 checks may wait at the same time; a burst of new keys exceeds that, and the rest is denied",
        fix: "set circuit_breakers.thresholds with max_requests and max_pending_requests of 8192",
        not_settable: GENERATORS,
        examine: circuit_breaker_low,
    },
    Rule {
        code: "health_check_missing",
        severities: &[Warning],
        meaning: "Envoy sends checks to an instance that hangs or is not ready, until each runs into its deadline",
        fix: "add health_checks with grpc_health_check and the service name envoy.service.auth.v3.Authorization",
        not_settable: GENERATORS,
        examine: health_check_missing,
    },
    Rule {
        code: "health_check_unknown",
        severities: &[Error],
        meaning: "the health check names a service that Keystile does not have, so no instance is ever healthy",
        fix: "set service_name to envoy.service.auth.v3.Authorization",
        not_settable: NONE,
        examine: health_check_unknown,
    },
    Rule {
        code: "panic_threshold",
        severities: &[Warning],
        meaning: "Envoy ignores health checks once many instances fail them, and sends checks to those that hang",
        fix: "set common_lb_config.healthy_panic_threshold to 0",
        not_settable: NONE,
        examine: panic_threshold,
    },
    Rule {
        code: "keepalive_missing",
        severities: &[Warning],
        meaning: "a connection whose other end is gone is noticed only by checks that run into their deadline",
        fix: "set connection_keepalive of http2_protocol_options to an interval of 5s and a timeout of 1s",
        not_settable: ISTIO,
        examine: keepalive_missing,
    },
    Rule {
        code: "connect_timeout_long",
        severities: &[Warning],
        meaning: "an address that does not answer takes the whole deadline of a check, so no other instance is tried",
        fix: "set connect_timeout to 0.25s",
        not_settable: NONE,
        examine: connect_timeout_long,
    },
];

/// A fault at a field of each cluster of Keystile that a condition holds for.
fn clusters(
    config: &Config,
    severity: Severity,
    field: &str,
    is_wrong: impl Fn(&Cluster, Call<'_>) -> bool,
) -> Vec<Fault> {
    let wrong = config.asked_clusters().filter(|(_, cluster, call)| is_wrong(cluster, *call));
    wrong
        .map(|(_, cluster, call)| Fault::new(severity, format!("{}.{field}", cluster.path)).of(call.origin))
        .collect()
}

/// Whether a cluster leads over a network. One whose endpoints are not in the document may.
fn is_remote(cluster: &Cluster) -> bool {
    !cluster.endpoints.iter().all(|endpoint| *endpoint == Endpoint::Pipe) || cluster.endpoints.is_empty()
}

fn cluster_missing(config: &Config) -> Vec<Fault> {
    if config.has_more_clusters {
        return Vec::new();
    }
    let calls = config.calls().filter(|call| {
        call.service.cluster().is_some_and(|name| !name.is_empty() && !config.clusters.contains_key(name))
    });
    calls.map(|call| Fault::new(Error, format!("{}.envoy_grpc.cluster_name", call.service.path))).collect()
}

fn cluster_not_http2(config: &Config) -> Vec<Fault> {
    clusters(config, Error, "typed_extension_protocol_options", |cluster, _| !cluster.speaks_http2)
}

fn plain_text(config: &Config) -> Vec<Fault> {
    clusters(config, Warning, "transport_socket", |cluster, _| {
        cluster.transport == Transport::Plain && cluster.endpoints.iter().any(|endpoint| !endpoint.is_local())
    })
}

fn tls_unverified(config: &Config) -> Vec<Fault> {
    clusters(config, Error, "transport_socket", |cluster, _| cluster.transport == Transport::UnverifiedTls)
}

fn circuit_breaker_low(config: &Config) -> Vec<Fault> {
    let is_low = |limit: Option<f64>| limit.is_none_or(|limit| limit <= DEFAULT_REQUESTS);
    clusters(config, Warning, "circuit_breakers", |cluster, _| {
        is_low(cluster.max_requests) || is_low(cluster.max_pending)
    })
}

fn health_check_missing(config: &Config) -> Vec<Fault> {
    clusters(config, Warning, "health_checks", |cluster, _| cluster.grpc_health_checks.is_empty())
}

fn health_check_unknown(config: &Config) -> Vec<Fault> {
    let known = ["", SERVICE_NAME];
    clusters(config, Error, "health_checks", |cluster, _| {
        cluster.grpc_health_checks.iter().any(|check| !known.contains(&check.service.as_str()))
    })
}

fn panic_threshold(config: &Config) -> Vec<Fault> {
    clusters(config, Warning, "common_lb_config.healthy_panic_threshold", |cluster, _| {
        !cluster.grpc_health_checks.is_empty() && cluster.panic_threshold > 0.0
    })
}

fn keepalive_missing(config: &Config) -> Vec<Fault> {
    clusters(config, Warning, "typed_extension_protocol_options", |cluster, _| {
        cluster.speaks_http2 && !cluster.has_keepalive && is_remote(cluster)
    })
}

fn connect_timeout_long(config: &Config) -> Vec<Fault> {
    clusters(config, Warning, "connect_timeout", |cluster, call| {
        is_remote(cluster)
            && call.service.deadline().is_some_and(|deadline| cluster.connect_timeout >= deadline)
    })
}
