//! Every flag and environment variable of `keystile serve` and of the database, on one page.
//!
//! Raw flags become validated settings here, in one step; nothing behind this file parses text.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use crate::credential::brands::KeyBrand;

mod connections;
mod durable;
mod inject;
mod libpq;
mod management;
pub(crate) mod moment;
mod password_file;
mod postgres_url;
mod proofs;
mod quantity;
mod redacted;
mod rotation_link;
mod secret;
mod secret_file;
mod tls;
mod values;

pub use connections::{DatabaseOptions, RedisOptions};
pub use durable::DurableProofs;
pub use inject::{InjectOptions, SidecarUser};
pub use libpq::is_unread_libpq_variable;
pub use management::{ClientScope, ManagementClient, ManagementOptions, ManagementTlsOptions, TokenKind};
pub use postgres_url::PostgresUrl;
pub use proofs::{BcryptCost, DEFAULT_COST, FailedAttempts, FailedAttemptsLimit};
pub use quantity::Quantity;
pub use redacted::redacted;
pub use rotation_link::RotationLink;
pub use secret::{Secret, Secrets};
pub use tls::{AdminTlsOptions, ClientFiles, ClientName, NamedFile, TlsFiles, TlsOptions};
pub use values::{CredentialSource, DatabaseUrl, Listen, RedisUrl};

/// The settings of `keystile serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeOptions {
    /// The database of the keys.
    #[command(flatten)]
    pub database: DatabaseOptions,

    /// The Redis that instances share.
    #[command(flatten)]
    pub redis: RedisOptions,

    /// Listeners for Envoy (gRPC): `ADDRESS:PORT` or `unix:/PATH`, separated by comma.
    #[arg(
        long,
        env = "KEYSTILE_LISTEN",
        default_value = "127.0.0.1:9191",
        value_delimiter = ',',
        help_heading = "Listeners"
    )]
    pub listen: Vec<Listen>,

    /// Permissions of Unix sockets, octal.
    #[arg(long, env = "KEYSTILE_SOCKET_MODE", default_value = "0660", value_parser = octal, help_heading = "Listeners")]
    pub socket_mode: u32,

    /// Listener of `/livez`, `/readyz`, `/metrics` and `/stats` (HTTP).
    #[arg(long, env = "KEYSTILE_ADMIN_LISTEN", default_value = "127.0.0.1:9192", help_heading = "Listeners")]
    pub admin_listen: SocketAddr,

    /// Maximum time that running calls may take after SIGTERM.
    #[arg(long, env = "KEYSTILE_DRAIN_TIMEOUT", default_value = "10s", value_parser = duration, help_heading = "Listeners")]
    pub drain_timeout: Duration,

    /// TLS of the gRPC listeners on TCP.
    #[command(flatten)]
    pub tls: TlsOptions,

    /// TLS of the admin listener.
    #[command(flatten)]
    pub admin_tls: AdminTlsOptions,

    /// Where requests carry API keys: `bearer`, `header:NAME`, `query:NAME`, `cookie:NAME`, separated by comma.
    #[arg(
        long,
        env = "KEYSTILE_CREDENTIAL_SOURCES",
        default_value = "bearer,header:x-api-key",
        value_delimiter = ',',
        help_heading = "Checks"
    )]
    pub credential_sources: Vec<CredentialSource>,

    /// How API keys begin, such as `en_,ks_`. A token of another issuer in a header is then foreign: it stays in the request and is no credential. If the request also has a proven key, the foreign token is stripped. A token that has a brand in another place or spelling is malformed. Default: every token is taken for an API key.
    #[arg(long, env = "KEYSTILE_KEY_BRANDS", value_delimiter = ',', help_heading = "Checks")]
    pub key_brands: Vec<KeyBrand>,

    /// Pass the API key on to the upstream instead of stripping it, and a foreign token that came with it.
    #[arg(long, env = "KEYSTILE_FORWARD_CREDENTIAL", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set, help_heading = "Checks")]
    pub forward_credential: bool,

    /// Source of the client's address: `auto` uses the gRPC metadata `x-client-ip` where Envoy sends it, otherwise the peer; `source` always uses the peer.
    #[arg(long, env = "KEYSTILE_CLIENT_ADDRESS", default_value = "auto", help_heading = "Checks")]
    pub client_address: ClientAddress,

    /// `enforce` denies; `shadow` allows every request and reports would-be denials.
    #[arg(long, env = "KEYSTILE_MODE", default_value = "enforce", help_heading = "Checks")]
    pub mode: Mode,

    /// Identity headers for the upstream: `all`, `none`, or names separated by comma.
    #[arg(
        long,
        env = "KEYSTILE_UPSTREAM_HEADERS",
        default_value = "all",
        value_delimiter = ',',
        help_heading = "Checks"
    )]
    pub upstream_headers: Vec<String>,

    /// Which identity headers are removed from requests if Keystile does not set them: `all`, or those `seen` in the check. `seen` is safe only where Envoy sends all `x-auth-*` and `x-ratelimit-*` headers with the check. Headers that Envoy holds back reach the upstream as the client wrote them.
    #[arg(long, env = "KEYSTILE_REMOVE_HEADERS", default_value = "all", help_heading = "Checks")]
    pub remove_headers: RemoveHeaders,

    /// Fields of the dynamic metadata for Envoy: `all`, `none`, or names separated by comma.
    #[arg(
        long,
        env = "KEYSTILE_METADATA",
        default_value = "all",
        value_delimiter = ',',
        help_heading = "Checks"
    )]
    pub metadata: Vec<String>,

    /// Format of a denial's body: `problem` (RFC 9457), `openai` (as OpenAI's client libraries read it), `text`.
    #[arg(long, env = "KEYSTILE_DENY_FORMAT", default_value = "problem", help_heading = "Checks")]
    pub deny_format: DenyFormat,

    /// Page about rotated keys, such as `https://example.com/docs/rotation`. Callers of a key that was rotated receive it as `Link`, together with `Deprecation` and `Sunset`.
    #[arg(long, env = "KEYSTILE_ROTATION_LINK", value_name = "URL", help_heading = "Checks")]
    pub rotation_link: Option<RotationLink>,

    /// Whether a locked account (`users.account_locked`) stops its API keys: `deny` or `ignore`. With `deny`, anyone who can lock an account by failed logins can stop its keys. With `ignore`, only `is_active` stops them.
    #[arg(long, env = "KEYSTILE_ACCOUNT_LOCK", default_value = "deny", help_heading = "Checks")]
    pub account_lock: AccountLock,

    /// Deadline of a check. An earlier deadline of Envoy's applies instead.
    #[arg(long, env = "KEYSTILE_TIMEOUT", default_value = "2s", value_parser = duration, help_heading = "Checks")]
    pub timeout: Duration,

    /// Answer to an internal failure: `deny` answers 503, `defer` fails the call, so that Envoy's failure mode decides.
    #[arg(long, env = "KEYSTILE_ON_FAILURE", default_value = "deny", help_heading = "Checks")]
    pub on_failure: OnFailure,

    /// How long a key record is cached before it is read again.
    #[arg(long, env = "KEYSTILE_RECORD_TTL", default_value = "300s", value_parser = duration, help_heading = "Caches")]
    pub record_ttl: Duration,

    /// How long a proof is cached, so that the key needs no bcrypt.
    #[arg(long, env = "KEYSTILE_PROOF_TTL", default_value = "3600s", value_parser = duration, help_heading = "Caches")]
    pub proof_ttl: Duration,

    /// How long unknown prefixes and wrong secrets are cached.
    #[arg(long, env = "KEYSTILE_NEGATIVE_TTL", default_value = "10s", value_parser = duration, help_heading = "Caches")]
    pub negative_ttl: Duration,

    /// How long a record is used after `--record-ttl` while the database does not respond. With `0s`, no expired record is used.
    #[arg(long, env = "KEYSTILE_STALE_IF_ERROR", default_value = "300s", value_parser = duration_or_none, help_heading = "Caches")]
    pub stale_if_error: Duration,

    /// Maximum number of cached prefixes. Unknown prefixes have a separate cache of the same size.
    #[arg(long, env = "KEYSTILE_MEMORY_CAPACITY", default_value = "100000", value_parser = capacity, help_heading = "Caches")]
    pub memory_capacity: usize,

    /// Interval at which the use of keys is written to the database (`last_used_at`, `total_requests`). `0s` disables it.
    #[arg(long, env = "KEYSTILE_USAGE_INTERVAL", default_value = "10s", value_parser = duration_or_none, help_heading = "Caches")]
    pub usage_interval: Duration,

    /// Usage columns that Keystile writes. Leave out `total_requests` if the application counts requests itself.
    #[arg(
        long,
        env = "KEYSTILE_USAGE_COLUMNS",
        default_value = "last_used_at,total_requests",
        value_delimiter = ',',
        help_heading = "Caches"
    )]
    pub usage_columns: Vec<UsageColumn>,

    /// Secret that protects cached proofs and records, at least 32 characters. During a rotation, several separated by comma, the newest first. Default: with SQLite and without Redis, a file next to the database; otherwise a random secret, with which instances share nothing and no proof survives a restart.
    #[arg(
        long,
        env = "KEYSTILE_CACHE_SECRET",
        hide_env_values = true,
        conflicts_with = "cache_secret_file",
        help_heading = "Caches"
    )]
    pub cache_secret: Option<Secrets>,

    /// File with the cache secret, or several separated by comma.
    #[arg(long, env = "KEYSTILE_CACHE_SECRET_FILE", help_heading = "Caches")]
    pub cache_secret_file: Option<PathBuf>,

    /// Which proofs survive a restart without Redis: `none`, `all`, or a list of `generated` (keys with the form and checksum of `keystile keys create`) and beginnings of other random keys, such as `generated,en_`. Needs a cache secret; next to a SQLite file, Keystile creates one.
    #[arg(long, env = "KEYSTILE_DURABLE_PROOFS", default_value = "generated", help_heading = "Proofs")]
    pub durable_proofs: DurableProofs,

    /// Number of bcrypt threads, at low priority [default: half the cores, at least 2]. With 1, response times may distinguish a real prefix from a made-up one during a flood.
    #[arg(long, env = "KEYSTILE_BCRYPT_THREADS", value_parser = threads, help_heading = "Proofs")]
    pub bcrypt_threads: Option<usize>,

    /// bcrypt cost whose duration refusals imitate by waiting. `auto` uses the highest cost of the active hashes in the database.
    #[arg(long, env = "KEYSTILE_BCRYPT_COST", default_value = "auto", help_heading = "Proofs")]
    pub bcrypt_cost: BcryptCost,

    /// Failures per client network, such as `60/1m`, after which its unproven keys come last in the queue and get 429 `too_many_attempts` if the queue is full. `off` disables it. A network is an address that Envoy sends as `x-client-ip`: its /32, or /64 in IPv6. For its /24 or /48, 4 times as many failures are allowed; for a /32 in IPv6, 16 times. Without `x-client-ip`, the limit does not apply.
    #[arg(long, env = "KEYSTILE_FAILED_ATTEMPTS", default_value = "60/1m", help_heading = "Proofs")]
    pub failed_attempts: FailedAttemptsLimit,

    /// Where requests are counted against the limits of keys: nowhere (`off`; the upstream gets the limits), in each instance (`local`), or in Redis for all instances (`redis`).
    #[arg(long, env = "KEYSTILE_RATE_LIMIT", default_value = "off", help_heading = "Limits")]
    pub rate_limit: RateLimit,

    /// How Redis is charged: `leased` charges small leases in advance, so that few checks wait for Redis; `exact` asks Redis at every check.
    #[arg(long, env = "KEYSTILE_RATE_LIMIT_CHARGE", default_value = "leased", help_heading = "Limits")]
    pub rate_limit_charge: RateLimitCharge,

    /// While Redis does not respond: `divide` gives each instance its part of every limit, `deny` answers 503 to keys with limits.
    #[arg(long, env = "KEYSTILE_RATE_LIMIT_ON_LOSS", default_value = "divide", help_heading = "Limits")]
    pub rate_limit_on_loss: RateLimitOnLoss,

    /// More response headers with limits for clients: `none`, or `draft-10` for `RateLimit` and `RateLimit-Policy` of draft-ietf-httpapi-ratelimit-headers-10.
    #[arg(long, env = "KEYSTILE_RATE_LIMIT_FIELDS", default_value = "none", help_heading = "Limits")]
    pub rate_limit_fields: RateLimitFields,

    /// Log level, or tracing directives such as `info,keystile=debug`.
    #[arg(long, env = "KEYSTILE_LOG", default_value = "info", help_heading = "Logs")]
    pub log: String,

    /// Format of the log: `text`, or `json` with one object per line.
    #[arg(long, env = "KEYSTILE_LOG_FORMAT", default_value = "text", help_heading = "Logs")]
    pub log_format: LogFormat,
}

/// Source of the client's address. `x-forwarded-for` is never read here: which hops to
/// trust is Envoy's to decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClientAddress {
    /// The gRPC metadata `x-client-ip` where Envoy sends it, else the peer of the connection.
    Auto,
    /// The peer of the connection alone.
    Source,
}

/// The effect of a denial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Denies the request.
    Enforce,
    /// Allows the request and reports the denial.
    Shadow,
}

/// Whether a locked account stops its API keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum AccountLock {
    /// It does, until the lock ends.
    #[default]
    Deny,
    /// It does not.
    Ignore,
}

/// Format of a denial's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DenyFormat {
    /// A problem detail (RFC 9457).
    Problem,
    /// The format of OpenAI's client libraries.
    Openai,
    /// A line of text.
    Text,
}

/// Answer to an internal failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnFailure {
    /// A denied response with status 503, in every failure mode of Envoy.
    Deny,
    /// gRPC `UNAVAILABLE`: Envoy's failure mode decides.
    Defer,
}

/// A usage column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum UsageColumn {
    /// Time of the last use.
    #[value(name = "last_used_at")]
    LastUsedAt,
    /// Number of requests.
    #[value(name = "total_requests")]
    TotalRequests,
}

/// Where requests are counted against the limits of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RateLimit {
    /// Nowhere.
    Off,
    /// In each instance.
    Local,
    /// In Redis, for all instances.
    Redis,
}

/// How Redis is charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RateLimitCharge {
    /// In small leases, in advance.
    Leased,
    /// At each check.
    Exact,
}

/// Answer to keys with limits while Redis does not respond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RateLimitOnLoss {
    /// Each instance continues with its part of the limits.
    Divide,
    /// Keys with limits are denied.
    Deny,
}

/// Which identity headers are removed if Keystile does not set them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RemoveHeaders {
    /// Every one.
    All,
    /// Those in the check.
    Seen,
}

/// More response headers with limits for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RateLimitFields {
    /// None.
    None,
    /// `RateLimit` and `RateLimit-Policy`, as of draft-ietf-httpapi-ratelimit-headers-10.
    #[value(name = "draft-10")]
    Draft10,
}

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl UsageColumn {
    /// The name of the column.
    pub fn name(self) -> &'static str {
        match self {
            Self::LastUsedAt => "last_used_at",
            Self::TotalRequests => "total_requests",
        }
    }
}

impl ServeOptions {
    /// The cache secrets, newest first, from their flag or their file; `None` when neither is set.
    ///
    /// # Errors
    /// A text that names the file and the problem.
    pub fn cache_secrets(&self) -> Result<Option<Secrets>, String> {
        let Some(path) = &self.cache_secret_file else { return Ok(self.cache_secret.clone()) };
        let text = secret_file::read_secret_file("--cache-secret-file", path)?;
        let secrets = text.parse::<Secrets>();
        secrets.map(Some).map_err(|error| format!("--cache-secret-file {}: {error}", path.display()))
    }

    /// The number of bcrypt threads.
    pub fn bcrypt_threads(&self) -> usize {
        let half_the_cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2);
        self.bcrypt_threads.unwrap_or_else(|| half_the_cores().max(2))
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match duration_or_none(text) {
        Ok(duration) if duration.is_zero() => Err("must be more than zero".into()),
        parsed => parsed,
    }
}

/// A duration of 0 to 365 days.
pub(crate) fn duration_or_none(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration > MAX_DURATION => Err("is over 365 days".into()),
        Ok(duration) => Ok(duration),
        Err(_) => Err("is not a duration such as 500ms, 10s or 5m".into()),
    }
}

/// Keeps every sum of an instant and a setting within range.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("is not a mode such as 0660".into()),
    }
}

fn capacity(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(entries @ 1..=100_000_000) => Ok(entries),
        _ => Err("is not a number from 1 to 100000000".into()),
    }
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads @ 1..=1024) => Ok(threads),
        _ => Err("is not a number from 1 to 1024".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_bounded_and_zero_only_where_it_means_something() {
        assert!(duration("0s").is_err());
        assert!(duration("400d").is_err());
        assert!(duration("soon").is_err());
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration_or_none("0s"), Ok(Duration::ZERO));
    }
}
