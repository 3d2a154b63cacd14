//! Clusters.

use std::time::Duration;

use crate::envoy_config::{
    config::{Cluster, Config, Endpoint, GrpcHealthCheck, Transport},
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
    let http2 = options.iter().filter_map(http2_options).chain(node.field("http2_protocol_options")).next();
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
        transport: transport(node),
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

/// The best of a cluster's sockets: which one a connection gets depends on its endpoint.
fn transport(node: &Node<'_>) -> Transport {
    let matches = node.items("transport_socket_matches").into_iter();
    let sockets =
        matches.filter_map(|entry| entry.field("transport_socket")).chain(node.field("transport_socket"));
    let kinds: Vec<_> = sockets.map(|socket| of_socket(&socket)).collect();
    let best = [Transport::Protected, Transport::UnverifiedTls].into_iter().find(|kind| kinds.contains(kind));
    best.unwrap_or(Transport::Plain)
}

fn of_socket(socket: &Node<'_>) -> Transport {
    let Some((kind, message)) = socket.field("typed_config").and_then(|typed| typed.any()) else {
        return Transport::Plain;
    };
    // A socket around another, such as one that adds the PROXY protocol.
    if let Some(inner) = message.field("transport_socket") {
        return of_socket(&inner);
    }
    if kind.ends_with(".RawBuffer") {
        return Transport::Plain;
    }
    if !kind.ends_with(".UpstreamTlsContext") {
        return Transport::Protected;
    }
    let validation =
        ["validation_context", "validation_context_sds_secret_config", "combined_validation_context"];
    let common = message.field("common_tls_context");
    let is_verified = common.is_some_and(|common| validation.iter().any(|name| common.field(name).is_some()));
    if is_verified { Transport::Protected } else { Transport::UnverifiedTls }
}
