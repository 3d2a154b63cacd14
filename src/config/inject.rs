//! Every flag and environment variable of `keystile inject`, on one page.
//!
//! Its own variables begin with `KEYSTILE_INJECT_`: the image sets `KEYSTILE_LISTEN` for `serve`.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{ArgGroup, Args};

use super::{LogFormat, Quantity, duration, duration_or_none};

/// The settings of `keystile inject`.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("certificate").required(true))]
pub struct InjectOptions {
    /// Image of the sidecars, by tag or digest.
    #[arg(long, env = "KEYSTILE_INJECT_IMAGE", help_heading = "Sidecars")]
    pub image: String,

    /// When the kubelet pulls the image: `IfNotPresent`, `Always`, `Never`.
    #[arg(long, env = "KEYSTILE_INJECT_IMAGE_PULL_POLICY", default_value = "IfNotPresent", value_parser = ["IfNotPresent", "Always", "Never"], help_heading = "Sidecars")]
    pub image_pull_policy: String,

    /// ConfigMap with the settings of a sidecar, in the namespace of its pod. It may be missing. A pod may name another.
    #[arg(long, env = "KEYSTILE_INJECT_CONFIG", default_value = "keystile", help_heading = "Sidecars")]
    pub config: String,

    /// Secret with the `database-url` of a sidecar, in the namespace of its pod. A pod may name another.
    #[arg(long, env = "KEYSTILE_INJECT_KEYS_SECRET", default_value = "keystile", help_heading = "Sidecars")]
    pub keys_secret: String,

    /// CPU request of a sidecar.
    #[arg(long, env = "KEYSTILE_INJECT_CPU_REQUEST", default_value = "50m", help_heading = "Sidecars")]
    pub cpu_request: Quantity,

    /// Memory request of a sidecar.
    #[arg(long, env = "KEYSTILE_INJECT_MEMORY_REQUEST", default_value = "64Mi", help_heading = "Sidecars")]
    pub memory_request: Quantity,

    /// Memory limit of a sidecar.
    #[arg(long, env = "KEYSTILE_INJECT_MEMORY_LIMIT", default_value = "256Mi", help_heading = "Sidecars")]
    pub memory_limit: Quantity,

    /// CPU request and limit of a sidecar in a Guaranteed pod. With much less, bcrypt takes longer than Envoy waits.
    #[arg(long, env = "KEYSTILE_INJECT_GUARANTEED_CPU", default_value = "500m", help_heading = "Sidecars")]
    pub guaranteed_cpu: Quantity,

    /// Port of a sidecar's `/livez`, `/readyz` and `/metrics`.
    #[arg(long, env = "KEYSTILE_INJECT_ADMIN_PORT", default_value = "9192", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Sidecars")]
    pub admin_port: u16,

    /// User and group id of a sidecar. `none` leaves the choice to the cluster, as OpenShift needs it.
    #[arg(
        long,
        env = "KEYSTILE_INJECT_USER",
        default_value = "65532",
        value_name = "ID",
        help_heading = "Sidecars"
    )]
    pub user: SidecarUser,

    /// Listener for the API server (HTTPS). `[::]` is every address, of IPv4 too.
    #[arg(long, env = "KEYSTILE_INJECT_LISTEN", default_value = "[::]:8443", help_heading = "Webhook")]
    pub listen: SocketAddr,

    /// Listener of `/livez`, `/readyz` and `/metrics` (HTTP).
    #[arg(long, env = "KEYSTILE_INJECT_ADMIN_LISTEN", default_value = "[::]:9192", help_heading = "Webhook")]
    pub admin_listen: SocketAddr,

    /// Certificate chain (PEM), read again when it changes.
    #[arg(
        long,
        env = "KEYSTILE_INJECT_TLS_CERT",
        group = "certificate",
        requires = "tls_key",
        help_heading = "Webhook"
    )]
    pub tls_cert: Option<PathBuf>,

    /// Private key of the certificate (PEM), read again when it changes.
    #[arg(long, env = "KEYSTILE_INJECT_TLS_KEY", requires = "tls_cert", help_heading = "Webhook")]
    pub tls_key: Option<PathBuf>,

    /// Interval at which the certificate files are read.
    #[arg(long, env = "KEYSTILE_INJECT_TLS_INTERVAL", default_value = "10s", value_parser = duration, help_heading = "Webhook")]
    pub tls_interval: Duration,

    /// For trials: create a CA and a certificate for these names at start. The CA is at `/ca.crt` of the admin listener.
    #[arg(
        long,
        env = "KEYSTILE_INJECT_SELF_SIGNED",
        value_delimiter = ',',
        group = "certificate",
        conflicts_with = "tls_key",
        help_heading = "Webhook"
    )]
    pub self_signed: Option<Vec<String>>,

    /// How long the injector answers after SIGTERM, while it is not ready, until the API server no longer calls it.
    #[arg(long, env = "KEYSTILE_INJECT_DRAIN_DELAY", default_value = "5s", value_parser = duration_or_none, help_heading = "Webhook")]
    pub drain_delay: Duration,

    /// Log level, or tracing directives such as `info,keystile=debug`.
    #[arg(long, env = "KEYSTILE_LOG", default_value = "info", help_heading = "Logs")]
    pub log: String,

    /// Format of the log: `text`, or `json` with one object per line.
    #[arg(long, env = "KEYSTILE_LOG_FORMAT", default_value = "text", help_heading = "Logs")]
    pub log_format: LogFormat,
}

/// The user id and group id of a sidecar container, which are the same number. `None` where the cluster chooses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SidecarUser(pub Option<u32>);

impl FromStr for SidecarUser {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(0) => Err("is root; write another number, or none"),
            Ok(id) => Ok(Self(Some(id))),
            Err(_) if text == "none" => Ok(Self(None)),
            Err(_) => Err("is neither a number, such as 65532, nor none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_a_number_but_not_root() {
        assert_eq!("65532".parse(), Ok(SidecarUser(Some(65532))));
        assert_eq!("none".parse(), Ok(SidecarUser(None)));
        for bad in ["0", "-1", "nobody", "", "4294967296"] {
            assert!(bad.parse::<SidecarUser>().is_err(), "{bad}");
        }
    }
}
