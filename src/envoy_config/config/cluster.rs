//! Clusters.

use std::time::Duration;

/// A cluster.
#[derive(Debug)]
pub(in crate::envoy_config) struct Cluster {
    pub(in crate::envoy_config) path: String,
    pub(in crate::envoy_config) connect_timeout: Duration,
    pub(in crate::envoy_config) speaks_http2: bool,
    pub(in crate::envoy_config) has_keepalive: bool,
    pub(in crate::envoy_config) transport: Transport,
    /// The hosts of its endpoints. Those of a discovery service are not known.
    pub(in crate::envoy_config) endpoints: Vec<Endpoint>,
    pub(in crate::envoy_config) max_requests: Option<f64>,
    pub(in crate::envoy_config) max_pending: Option<f64>,
    pub(in crate::envoy_config) grpc_health_checks: Vec<GrpcHealthCheck>,
    /// Percent.
    pub(in crate::envoy_config) panic_threshold: f64,
}

/// What protects the connections of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::envoy_config) enum Transport {
    Plain,
    /// TLS that accepts every certificate.
    UnverifiedTls,
    /// TLS, or another kind of socket.
    Protected,
}

/// A health check with gRPC's protocol.
#[derive(Debug)]
pub(in crate::envoy_config) struct GrpcHealthCheck {
    pub(in crate::envoy_config) path: String,
    pub(in crate::envoy_config) service: String,
    pub(in crate::envoy_config) authority: Option<String>,
}

/// Where a cluster leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::envoy_config) enum Endpoint {
    Pipe,
    Host(String),
}

impl Endpoint {
    /// Whether what is sent stays on this machine.
    pub(in crate::envoy_config) fn is_local(&self) -> bool {
        match self {
            Self::Pipe => true,
            Self::Host(host) => {
                host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
            }
        }
    }
}
