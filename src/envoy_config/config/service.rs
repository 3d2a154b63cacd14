//! How Keystile is called.

use std::time::Duration;

/// Envoy's default for the deadline of a check.
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(200);

/// How Keystile is called.
#[derive(Debug)]
pub(in crate::envoy_config) struct Service {
    pub(in crate::envoy_config) path: String,
    pub(in crate::envoy_config) target: Target,
    /// None for Envoy's default. Zero for none.
    pub(in crate::envoy_config) timeout: Option<Duration>,
    /// The deadline of each try, where calls are tried again.
    pub(in crate::envoy_config) try_timeout: Option<Duration>,
    pub(in crate::envoy_config) metadata: Vec<(String, String)>,
}

/// What is called.
#[derive(Debug)]
pub(in crate::envoy_config) enum Target {
    Cluster {
        name: String,
        authority: Option<String>,
    },
    /// Another client than Envoy's own.
    GoogleGrpc,
    /// A service that is no gRPC, so no Keystile.
    Http,
    Missing,
}

impl Service {
    /// The cluster that is called.
    pub(in crate::envoy_config) fn cluster(&self) -> Option<&str> {
        match &self.target {
            Target::Cluster { name, .. } => Some(name),
            _ => None,
        }
    }

    pub(in crate::envoy_config) fn is_grpc(&self) -> bool {
        matches!(self.target, Target::Cluster { .. } | Target::GoogleGrpc)
    }

    /// The deadline of a whole check. None where there is none.
    pub(in crate::envoy_config) fn deadline(&self) -> Option<Duration> {
        Some(self.timeout.unwrap_or(DEFAULT_TIMEOUT)).filter(|timeout| !timeout.is_zero())
    }
}
