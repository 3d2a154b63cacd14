//! Every flag and environment variable of `keystile serve` and of the database, on one page.
//!
//! Raw flags become validated settings here, in one step; nothing behind this file parses text.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

mod durable;
mod inject;
mod postgres_url;
mod proofs;
mod quantity;
mod redacted;
mod values;

pub use durable::DurableProofs;
pub use inject::InjectOptions;
pub use postgres_url::PostgresUrl;
pub use proofs::{BcryptCost, DEFAULT_COST, FailedAttempts, FailedAttemptsLimit};
pub use quantity::Quantity;
pub use redacted::redacted;
pub use values::{CredentialSource, DatabaseUrl, Listen, RedisUrl, Secret, Secrets};

/// Where the keys are: shared by every command that touches them.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Database")]
pub struct DatabaseOptions {
    /// `sqlite:FILE` or `postgres://USER:PASSWORD@HOST/NAME?sslmode=MODE`.
    #[arg(long, env = "KEYSTILE_DATABASE_URL", default_value = "sqlite:keystile.db", hide_env_values = true)]
    pub database_url: DatabaseUrl,

    /// Deadline of each call to the database.
    #[arg(long, env = "KEYSTILE_DATABASE_TIMEOUT", default_value = "500ms", value_parser = duration)]
    pub database_timeout: Duration,

    /// Postgres by another way, where notifications pass: past a pooler such as PgBouncer in transaction mode. `--database-url` when absent.
    #[arg(long, env = "KEYSTILE_CHANGE_FEED_URL", hide_env_values = true)]
    pub change_feed_url: Option<DatabaseUrl>,

    /// Connections to the database at the most, beside one to Postgres that listens. Look-ups leave one of them to the change feed.
    #[arg(long, env = "KEYSTILE_DATABASE_CONNECTIONS", default_value = "8", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub database_connections: u32,
}

/// Where records and proofs are shared, if anywhere.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Redis")]
pub struct RedisOptions {
    /// `redis://USER:PASSWORD@HOST:PORT/DB`, `rediss://` for TLS, `redis-cluster://`, `redis-sentinel://…?sentinelServiceName=NAME`; no Redis when absent.
    #[arg(long, env = "KEYSTILE_REDIS_URL", hide_env_values = true)]
    pub redis_url: Option<RedisUrl>,

    /// Deadline of each call to Redis.
    #[arg(long, env = "KEYSTILE_REDIS_TIMEOUT", default_value = "50ms", value_parser = duration)]
    pub redis_timeout: Duration,
}

/// Everything that `keystile serve` can be told.
#[derive(Debug, Clone, Args)]
pub struct ServeOptions {
    /// Where the keys are.
    #[command(flatten)]
    pub database: DatabaseOptions,

    /// Where records and proofs are shared.
    #[command(flatten)]
    pub redis: RedisOptions,

    /// Where Envoy asks (gRPC): `ADDRESS:PORT` or `unix:/PATH`, several by comma.
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

    /// Where `/livez`, `/readyz`, `/metrics` and `/stats` are (HTTP).
    #[arg(long, env = "KEYSTILE_ADMIN_LISTEN", default_value = "127.0.0.1:9192", help_heading = "Listeners")]
    pub admin_listen: SocketAddr,

    /// How long calls under way may take to end after SIGTERM.
    #[arg(long, env = "KEYSTILE_DRAIN_TIMEOUT", default_value = "10s", value_parser = duration, help_heading = "Listeners")]
    pub drain_timeout: Duration,

    /// Where API keys are looked for: `bearer`, `header:NAME`, `query:NAME`, `cookie:NAME`, several by comma.
    #[arg(
        long,
        env = "KEYSTILE_CREDENTIAL_SOURCES",
        default_value = "bearer,header:x-api-key",
        value_delimiter = ',',
        help_heading = "Checks"
    )]
    pub credential_sources: Vec<CredentialSource>,

    /// Pass the API key on to the upstream instead of stripping it.
    #[arg(long, env = "KEYSTILE_FORWARD_CREDENTIAL", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set, help_heading = "Checks")]
    pub forward_credential: bool,

    /// Whose word counts for the client's address: `auto` takes the gRPC metadata `x-client-ip` where Envoy sends it, else the peer; `source` the peer alone.
    #[arg(long, env = "KEYSTILE_CLIENT_ADDRESS", default_value = "auto", help_heading = "Checks")]
    pub client_address: ClientAddress,

    /// `enforce` denies; `shadow` lets everything through and reports what would have been denied.
    #[arg(long, env = "KEYSTILE_MODE", default_value = "enforce", help_heading = "Checks")]
    pub mode: Mode,

    /// Which headers tell the upstream who is calling: `all`, `none`, or names by comma.
    #[arg(
        long,
        env = "KEYSTILE_UPSTREAM_HEADERS",
        default_value = "all",
        value_delimiter = ',',
        help_heading = "Checks"
    )]
    pub upstream_headers: Vec<String>,

    /// Which headers of ours are removed from requests, of those that Keystile does not set: `all` of them, or those `seen` in the check. `seen` is safe only where Envoy sends all `x-auth-*` and `x-ratelimit-*` headers with the check: what it holds back reaches the upstream as the client wrote it.
    #[arg(long, env = "KEYSTILE_REMOVE_HEADERS", default_value = "all", help_heading = "Checks")]
    pub remove_headers: RemoveHeaders,

    /// What Envoy is told in dynamic metadata: `all`, `none`, or names by comma.
    #[arg(
        long,
        env = "KEYSTILE_METADATA",
        default_value = "all",
        value_delimiter = ',',
        help_heading = "Checks"
    )]
    pub metadata: Vec<String>,

    /// Form of a denial's body: `problem` (RFC 9457), `openai` (as OpenAI's client libraries read it), `text`.
    #[arg(long, env = "KEYSTILE_DENY_FORMAT", default_value = "problem", help_heading = "Checks")]
    pub deny_format: DenyFormat,

    /// Deadline of a whole check; Envoy's own deadline counts where it is earlier.
    #[arg(long, env = "KEYSTILE_TIMEOUT", default_value = "2s", value_parser = duration, help_heading = "Checks")]
    pub timeout: Duration,

    /// On an internal failure: `deny` answers 503, `defer` fails the call so that Envoy's failure mode decides.
    #[arg(long, env = "KEYSTILE_ON_FAILURE", default_value = "deny", help_heading = "Checks")]
    pub on_failure: OnFailure,

    /// How long a key record is believed before it is read again.
    #[arg(long, env = "KEYSTILE_RECORD_TTL", default_value = "300s", value_parser = duration, help_heading = "Caches")]
    pub record_ttl: Duration,

    /// How long a proven key needs no bcrypt.
    #[arg(long, env = "KEYSTILE_PROOF_TTL", default_value = "3600s", value_parser = duration, help_heading = "Caches")]
    pub proof_ttl: Duration,

    /// How long unknown prefixes and wrong secrets are remembered.
    #[arg(long, env = "KEYSTILE_NEGATIVE_TTL", default_value = "10s", value_parser = duration, help_heading = "Caches")]
    pub negative_ttl: Duration,

    /// How long a record serves past `--record-ttl` while the database does not answer; with `0s` it serves until then, and no longer.
    #[arg(long, env = "KEYSTILE_STALE_IF_ERROR", default_value = "300s", value_parser = duration_or_none, help_heading = "Caches")]
    pub stale_if_error: Duration,

    /// Prefixes held in memory; as many unknown ones, apart.
    #[arg(long, env = "KEYSTILE_MEMORY_CAPACITY", default_value = "100000", value_parser = capacity, help_heading = "Caches")]
    pub memory_capacity: usize,

    /// How often the use of keys is written to the database: `last_used_at` and `total_requests`; `0s` never.
    #[arg(long, env = "KEYSTILE_USAGE_INTERVAL", default_value = "10s", value_parser = duration_or_none, help_heading = "Caches")]
    pub usage_interval: Duration,

    /// Which of these columns are written: an application that counts requests itself leaves out `total_requests`.
    #[arg(
        long,
        env = "KEYSTILE_USAGE_COLUMNS",
        default_value = "last_used_at,total_requests",
        value_delimiter = ',',
        help_heading = "Caches"
    )]
    pub usage_columns: Vec<UsageColumn>,

    /// Secret under which keys are remembered, 32 characters at least; several by comma, newest first, while one is replaced. When absent, SQLite without Redis gets one in a file beside the database; otherwise it is random per process, which shares nothing and keeps no proof for a restart.
    #[arg(
        long,
        env = "KEYSTILE_CACHE_SECRET",
        hide_env_values = true,
        conflicts_with = "cache_secret_file",
        help_heading = "Caches"
    )]
    pub cache_secret: Option<Secrets>,

    /// File that holds the cache secret, or several.
    #[arg(long, env = "KEYSTILE_CACHE_SECRET_FILE", help_heading = "Caches")]
    pub cache_secret_file: Option<PathBuf>,

    /// Which proofs survive a restart, where there is no Redis: `none`, `all`, or by comma `generated` (keys of the form and checksum that `keystile keys create` gives them) and how other keys begin that are random, such as `generated,en_`. Needs a cache secret, which is made beside a SQLite file.
    #[arg(long, env = "KEYSTILE_DURABLE_PROOFS", default_value = "generated", help_heading = "Proofs")]
    pub durable_proofs: DurableProofs,

    /// Keys proven by bcrypt at the same time, at low priority [default: half the cores, at least 2]. With 1, the time of a refusal may tell a real prefix from a made-up one during a flood.
    #[arg(long, env = "KEYSTILE_BCRYPT_THREADS", value_parser = threads, help_heading = "Proofs")]
    pub bcrypt_threads: Option<usize>,

    /// bcrypt cost that refusals imitate, by waiting and never by computing: `auto` takes the highest among the active hashes in the database.
    #[arg(long, env = "KEYSTILE_BCRYPT_COST", default_value = "auto", help_heading = "Proofs")]
    pub bcrypt_cost: BcryptCost,

    /// Failures per client network, such as `60/1m`, before its unproven keys are served last, and answered 429 `too_many_attempts` where there is no room; `off` disables it. A network is an address that Envoy sends as `x-client-ip`: its /32, or /64 in IPv6. Its /24 or /48 may fail 4 times as often, a /32 in IPv6 16 times. Without `x-client-ip` no network is known.
    #[arg(long, env = "KEYSTILE_FAILED_ATTEMPTS", default_value = "60/1m", help_heading = "Proofs")]
    pub failed_attempts: FailedAttemptsLimit,

    /// Who counts requests against the limits of keys: nobody (`off`: they are told to the upstream), each process for itself (`local`), or Redis for all (`redis`).
    #[arg(long, env = "KEYSTILE_RATE_LIMIT", default_value = "off", help_heading = "Limits")]
    pub rate_limit: RateLimit,

    /// How Redis is charged: `leased` takes small shares ahead, so that few checks wait for it; `exact` asks it at every check.
    #[arg(long, env = "KEYSTILE_RATE_LIMIT_CHARGE", default_value = "leased", help_heading = "Limits")]
    pub rate_limit_charge: RateLimitCharge,

    /// While Redis does not answer: `divide` gives each process its part of every limit, `deny` answers 503 to keys with limits.
    #[arg(long, env = "KEYSTILE_RATE_LIMIT_ON_LOSS", default_value = "divide", help_heading = "Limits")]
    pub rate_limit_on_loss: RateLimitOnLoss,

    /// Further fields that tell clients of their limits: `none`, or `draft-10` for `RateLimit` and `RateLimit-Policy` of draft-ietf-httpapi-ratelimit-headers-10.
    #[arg(long, env = "KEYSTILE_RATE_LIMIT_FIELDS", default_value = "none", help_heading = "Limits")]
    pub rate_limit_fields: RateLimitFields,

    /// What is logged: a level, or tracing directives such as `info,keystile=debug`.
    #[arg(long, env = "KEYSTILE_LOG", default_value = "info", help_heading = "Logs")]
    pub log: String,

    /// Form of the log: `text` for people, `json` for programs, an object a line.
    #[arg(long, env = "KEYSTILE_LOG_FORMAT", default_value = "text", help_heading = "Logs")]
    pub log_format: LogFormat,
}

/// Whose word counts for the client's address. `x-forwarded-for` is never read here: which hops to
/// trust is Envoy's to decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClientAddress {
    /// The gRPC metadata `x-client-ip` where Envoy sends it, else the peer of the connection.
    Auto,
    /// The peer of the connection alone.
    Source,
}

/// What a denial does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Turns the request away.
    Enforce,
    /// Is reported, and the request let through.
    Shadow,
}

/// Form of a denial's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DenyFormat {
    /// A problem detail (RFC 9457).
    Problem,
    /// What OpenAI's client libraries read.
    Openai,
    /// A line of text.
    Text,
}

/// What an internal failure becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnFailure {
    /// A denied response with status 503, whatever Envoy's failure mode.
    Deny,
    /// gRPC `UNAVAILABLE`: Envoy's failure mode decides.
    Defer,
}

/// A column that says how a key was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum UsageColumn {
    /// When it was used last.
    #[value(name = "last_used_at")]
    LastUsedAt,
    /// How often it was used.
    #[value(name = "total_requests")]
    TotalRequests,
}

/// Who counts requests against the limits of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RateLimit {
    /// Nobody here.
    Off,
    /// Each process for itself.
    Local,
    /// Redis, for all.
    Redis,
}

/// How Redis is charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RateLimitCharge {
    /// In small shares, ahead.
    Leased,
    /// For each check.
    Exact,
}

/// What becomes of keys with limits while Redis does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RateLimitOnLoss {
    /// Each process goes on with its part.
    Divide,
    /// They are denied.
    Deny,
}

/// Which headers are removed, of those that Keystile could send and does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RemoveHeaders {
    /// Every one.
    All,
    /// Those that came with the check.
    Seen,
}

/// Which further fields tell clients of their limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RateLimitFields {
    /// None.
    None,
    /// `RateLimit` and `RateLimit-Policy`, as of draft-ietf-httpapi-ratelimit-headers-10.
    #[value(name = "draft-10")]
    Draft10,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl UsageColumn {
    /// What the column is called.
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
    /// A sentence that names the file and what is wrong with it.
    pub fn cache_secrets(&self) -> Result<Option<Secrets>, String> {
        let Some(path) = &self.cache_secret_file else { return Ok(self.cache_secret.clone()) };
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("--cache-secret-file {}: {error}", path.display()))?;
        let secrets = text.trim_end_matches(['\r', '\n']).parse::<Secrets>();
        secrets.map(Some).map_err(|error| format!("--cache-secret-file {}: {error}", path.display()))
    }

    /// How many threads may run bcrypt.
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
