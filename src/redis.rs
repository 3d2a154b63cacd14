//! The connection to Redis: one, shared by everything that asks it something.

use std::{future::Future, sync::Arc, time::Duration};

use fred::{
    clients::Client,
    error::ErrorKind,
    interfaces::ClientLike,
    types::{
        Builder, InfoKind, RespVersion,
        config::{ConnectionConfig, PerformanceConfig, ReconnectPolicy, TcpConfig, UnresponsiveConfig},
    },
};
use metrics::Histogram;

use crate::{
    config::RedisUrl,
    gate::{CallError, Gate, PLACES, Turned},
    metrics::Metrics,
};

/// A Redis server, cluster or sentinel group. Cheap to clone.
#[derive(Clone)]
pub struct Redis(Arc<Inner>);

struct Inner {
    client: Client,
    gate: Gate,
    ping: Histogram,
}

/// Why Redis has no answer. Its text names what an operator can mend, and no secret.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RedisError {
    /// The call was not made, or not waited for.
    #[error(transparent)]
    Turned(#[from] Turned),
    /// Redis cannot be reached, or broke off.
    #[error("{0}")]
    Unavailable(Arc<str>),
    /// Redis answers, and refuses.
    #[error("it refuses: {0}")]
    Refused(Arc<str>),
}

/// What Redis says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct ServerUsage {
    /// `used_memory`, in bytes.
    pub memory_bytes: u64,
    /// `connected_clients`.
    pub clients: u64,
    /// `evicted_keys` since it started.
    pub evicted_keys: u64,
}

/// The name in metrics.
pub const STORE: &str = "redis";

/// How long until the first connection, and a lost one, is tried again: from the first of these to the last,
/// twice as long each time. Recovery is to be noticed within 2 s.
const RECONNECT_MILLIS: std::ops::RangeInclusive<u32> = 5..=250;

/// A connection that owes an answer for this long is given up and made anew.
const UNRESPONSIVE: Duration = Duration::from_millis(500);

impl Redis {
    /// Takes the settings, and connects in the background for as long as it takes: the server need not
    /// be up. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`RedisError`] when a client cannot be made of the settings.
    pub fn connect(url: &RedisUrl, limit: Duration, metrics: &Metrics) -> Result<Self, RedisError> {
        let mut config = url.to_config()?;
        config.version = RespVersion::RESP3;
        // Absent at the start is an outage like any other: tried again.
        config.fail_fast = false;
        let connection = ConnectionConfig {
            connection_timeout: Duration::from_secs(1).max(limit),
            internal_command_timeout: UNRESPONSIVE.max(limit),
            // Whoever asked has gone by then.
            max_command_attempts: 1,
            unresponsive: UnresponsiveConfig {
                max_timeout: Some(UNRESPONSIVE.max(limit * 2)),
                interval: UNRESPONSIVE / 4,
            },
            tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
            ..ConnectionConfig::default()
        };
        let performance =
            PerformanceConfig { default_command_timeout: limit, ..PerformanceConfig::default() };
        let (soon, late) = (*RECONNECT_MILLIS.start(), *RECONNECT_MILLIS.end());
        let mut policy = ReconnectPolicy::new_exponential(0, soon, late, 2);
        policy.set_jitter(soon);
        let client = Builder::from_config(config)
            .set_policy(policy)
            .set_connection_config(connection)
            .set_performance_config(performance)
            .build()?;
        client.connect();
        let gate = Gate::new(STORE, limit, PLACES, metrics);
        let ping = metrics.store_duration(STORE, "ping");
        Ok(Self(Arc::new(Inner { client, gate, ping })))
    }

    /// The client, to make commands of for [`Redis::call`].
    pub fn client(&self) -> &Client {
        &self.0.client
    }

    /// Makes a guarded call, counted under `duration`.
    ///
    /// # Errors
    /// [`RedisError`] when there is no answer, or none that was hoped for.
    pub async fn call<T, E: Into<RedisError>>(
        &self,
        duration: &Histogram,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, RedisError> {
        self.0.gate.call(duration, async { call.await.map_err(Into::into) }).await
    }

    /// Answers once Redis answers.
    ///
    /// # Errors
    /// [`RedisError`] with what stands against it.
    pub async fn ping(&self) -> Result<(), RedisError> {
        self.call(&self.0.ping, self.client().ping::<String>(None)).await.map(drop)
    }

    /// What Redis says of itself; of a cluster, what one of its servers does.
    ///
    /// # Errors
    /// [`RedisError`] when it does not say.
    pub async fn usage(&self) -> Result<ServerUsage, RedisError> {
        let info: String = self.call(&self.0.ping, self.client().info(Some(InfoKind::All))).await?;
        let number = |name: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
        };
        Ok(ServerUsage {
            memory_bytes: number("used_memory"),
            clients: number("connected_clients"),
            evicted_keys: number("evicted_keys"),
        })
    }
}

impl From<fred::error::Error> for RedisError {
    fn from(error: fred::error::Error) -> Self {
        let words: Arc<str> = error.details().into();
        match error.kind() {
            // What the server says of a command, rather than of itself.
            ErrorKind::InvalidCommand
            | ErrorKind::InvalidArgument
            | ErrorKind::Parse
            | ErrorKind::NotFound
            | ErrorKind::Unknown => Self::Refused(words),
            ErrorKind::Timeout => Self::Unavailable("no answer in time".into()),
            _ => Self::Unavailable(words),
        }
    }
}

impl CallError for RedisError {
    fn is_outage(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}
