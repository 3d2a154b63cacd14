//! Clusters.

use std::time::Duration;

use crate::envoy_config::{
    config::{Cluster, Config, Endpoint, GrpcHealthCheck},
    node::Node,
};

/// Envoy's default for `connect_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Envoy's default for `healthy_panic_threshold`, in percent.
const PANIC_THRESHOLD: f64 = 50.0;

pub(super) fn read(node: &Node<'_>, config: &mut Config) {
    let Some(name) = node.text("name") else { return };
    let options = node.field("typed_extension_protocol_options").and_then(|options| {
        options.entries().find(|(name, _)| name.ends_with("HttpProtocolOptions")).map(|(_, options)| options)
    });
    let http2 = options.iter().flat_map(http2_options).chain(node.field("http2_protocol_options")).next();
    let assignment = node.field("load_assignment").map(|assignment| assignment.items("endpoints"));
    let endpoints = assignment.into_iter().flatten().flat_map(|locality| locality.items("lb_endpoints"));
    let endpoints = endpoints.filter_map(|entry| endpoint(&entry.at(&["endpoint", "address"])?));
    let thresholds = node.at(&["circuit_breakers"]).map(|breakers| breakers.items("thresholds"));
    // Checks have the default priority.
    let threshold = thresholds
        .into_iter()
        .flatten()
        .find(|threshold| threshold.choice("priority", &["DEFAULT", "HIGH"]) == 0);
    let limit = |name| threshold.as_ref().and_then(|threshold| threshold.number(name));
    let checks = node.items("health_checks").into_iter().filter_map(|check| check.field("grpc_health_check"));
    let panic = node.at(&["common_lb_config", "healthy_panic_threshold"]);
    let cluster = Cluster {
        path: node.path.clone(),
        connect_timeout: node.duration("connect_timeout").unwrap_or(CONNECT_TIMEOUT),
        speaks_http2: http2.is_some(),
        has_keepalive: http2.is_some_and(|http2| http2.field("connection_keepalive").is_some()),
        has_transport_socket: ["transport_socket", "transport_socket_matches"]
            .iter()
            .any(|name| node.field(name).is_some()),
        endpoints: endpoints.collect(),
        max_requests: limit("max_requests"),
        max_pending: limit("max_pending_requests"),
        grpc_health_checks: checks
            .map(|check| GrpcHealthCheck {
                service: check.text("service_name").unwrap_or_default().to_owned(),
                authority: check.text("authority").map(str::to_owned),
                path: check.path,
            })
            .collect(),
        // A message without a value is 0.
        panic_threshold: panic.map_or(PANIC_THRESHOLD, |panic| panic.number("value").unwrap_or(0.0)),
    };
    config.clusters.insert(name.to_owned(), cluster);
}

/// The options of HTTP/2, where the cluster speaks it.
fn http2_options<'a>(options: &Node<'a>) -> Option<Node<'a>> {
    ["explicit_http_config", "use_downstream_protocol_config", "auto_config"]
        .iter()
        .find_map(|kind| options.at(&[kind, "http2_protocol_options"]))
}

/// The endpoint in an `Address`.
fn endpoint(address: &Node<'_>) -> Option<Endpoint> {
    if address.field("pipe").is_some() {
        return Some(Endpoint::Pipe);
    }
    Some(Endpoint::Host(address.field("socket_address")?.text("address")?.to_owned()))
}
