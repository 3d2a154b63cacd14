//! Every flag and environment variable of `keystile management`, on one page.

use std::{fmt, net::SocketAddr, str::FromStr};

use clap::{Args, ValueEnum};

use super::{
    AccountLock, BcryptCost, ClientName, DatabaseOptions, FailedAttemptsLimit, LogFormat, Mode, RateLimit,
    duration,
    tls::{ClientFiles, NamedFile, TlsFiles, tls_options},
};
use crate::credential::generate::Brand;

/// A client of the management API, by the name in its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagementClient {
    /// What the certificate alone allows. `None`: the client needs a token.
    pub scope: Option<ClientScope>,
    /// The name in its certificate.
    pub name: ClientName,
}

/// What a client's certificate allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientScope {
    /// To read users and keys.
    Read,
    /// Everything.
    Write,
}

impl FromStr for ManagementClient {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scope, name) = match text.split_once(':') {
            Some(("read", name)) => (Some(ClientScope::Read), name),
            Some(("write", name)) => (Some(ClientScope::Write), name),
            _ => (None, text),
        };
        Ok(Self { scope, name: name.parse()? })
    }
}

impl fmt::Display for ClientScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

tls_options!(
    /// TLS of the management API.
    ManagementTlsOptions,
    "tls",
    "KEYSTILE_MANAGEMENT_TLS",
    "TLS",
    ManagementClient,
    "Clients that may connect, separated by comma: DNS names or URIs (SPIFFE ids) in their certificates, compared whole. `read:NAME` may read without a token, `write:NAME` may do everything without a token, `NAME` needs a token. Default: each client with a certificate of these CAs, with a token."
);

/// The settings of `keystile management`.
#[derive(Debug, Clone, Args)]
pub struct ManagementOptions {
    /// The database of the keys.
    #[command(flatten)]
    pub database: DatabaseOptions,

    /// Listener of the API (HTTP). Beyond loopback, it needs TLS.
    #[arg(long, env = "KEYSTILE_MANAGEMENT_LISTEN", help_heading = "Listeners")]
    pub listen: SocketAddr,

    /// Listener of `/livez`, `/readyz` and `/metrics` (HTTP, without TLS).
    #[arg(
        long,
        env = "KEYSTILE_MANAGEMENT_ADMIN_LISTEN",
        default_value = "127.0.0.1:9194",
        help_heading = "Listeners"
    )]
    pub admin_listen: SocketAddr,

    /// Maximum time that requests in progress may take after SIGTERM.
    #[arg(long, env = "KEYSTILE_MANAGEMENT_DRAIN_TIMEOUT", default_value = "10s", value_parser = duration, help_heading = "Listeners")]
    pub drain_timeout: std::time::Duration,

    /// TLS of the API.
    #[command(flatten)]
    pub tls: ManagementTlsOptions,

    /// Requests of each token or client in a time, such as `600/1m`, above which it gets 429. `off` disables it.
    #[arg(long, env = "KEYSTILE_MANAGEMENT_RATE_LIMIT", default_value = "600/1m", help_heading = "Limits")]
    pub rate_limit: FailedAttemptsLimit,

    /// Failed authentications of each client network in a time, above which its requests get 429. A network is an address in IPv4 and a /64 in IPv6. `off` disables it.
    #[arg(
        long,
        env = "KEYSTILE_MANAGEMENT_FAILED_ATTEMPTS",
        default_value = "30/1m",
        help_heading = "Limits"
    )]
    pub failed_attempts: FailedAttemptsLimit,

    /// Beginning of new keys: at most 4 characters.
    #[arg(long, env = "KEYSTILE_KEY_BRAND", default_value = "ks_", help_heading = "Keys")]
    pub brand: Brand,

    /// bcrypt cost of the hashes of new keys. Each step doubles the work to prove the key, and to guess it. `auto` is 12.
    #[arg(long, env = "KEYSTILE_BCRYPT_COST", default_value = "auto", help_heading = "Keys")]
    pub cost: BcryptCost,

    /// Mode of the instances, for explanations.
    #[arg(long, env = "KEYSTILE_MODE", default_value = "enforce", help_heading = "Explanations")]
    pub mode: Mode,

    /// Whether a locked account stops its API keys in the instances, for explanations.
    #[arg(long, env = "KEYSTILE_ACCOUNT_LOCK", default_value = "deny", help_heading = "Explanations")]
    pub account_lock: AccountLock,

    /// Where the instances count requests, for explanations.
    #[arg(
        long = "key-rate-limit",
        env = "KEYSTILE_RATE_LIMIT",
        default_value = "off",
        help_heading = "Explanations"
    )]
    pub counted: RateLimit,

    /// Log level, or tracing directives such as `info,keystile=debug`.
    #[arg(long, env = "KEYSTILE_LOG", default_value = "info", help_heading = "Logs")]
    pub log: String,

    /// Format of the log: `text`, or `json` with one object per line.
    #[arg(long, env = "KEYSTILE_LOG_FORMAT", default_value = "text", help_heading = "Logs")]
    pub log_format: LogFormat,
}

/// The scope of a token of the management API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TokenKind {
    /// To read users and keys.
    Read,
    /// Everything.
    Write,
    /// The keys of one user.
    Own,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_has_the_scope_before_its_name() {
        let client = |scope, name: &str| Ok(ManagementClient { scope, name: name.parse().expect("a name") });
        assert_eq!("portal.internal".parse(), client(None, "portal.internal"));
        assert_eq!("write:ci.internal".parse(), client(Some(ClientScope::Write), "ci.internal"));
        assert_eq!("read:spiffe://a/b".parse(), client(Some(ClientScope::Read), "spiffe://a/b"));
        assert_eq!("spiffe://a/b".parse(), client(None, "spiffe://a/b"));
        for bad in ["", "write:", "admin:ci.internal", "write:*", "read: a"] {
            assert!(bad.parse::<ManagementClient>().is_err(), "{bad}");
        }
    }
}
