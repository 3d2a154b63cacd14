//! The connection to Redis: one, shared by everything that asks it something.

use std::{future::Future, sync::Arc, time::Duration};

use fred::{
    clients::Client,
    error::ErrorKind,
    interfaces::ClientLike,
    types::{
        InfoKind, RespVersion,
        config::{ConnectionConfig, PerformanceConfig, TcpConfig, UnresponsiveConfig},
    },
};
use metrics::Histogram;
use tokio::{sync::watch, task::AbortHandle};

use crate::{
    addresses::{Failures, Lookup, SystemLookup},
    config::RedisUrl,
    gate::{CallError, Gate, PLACES, Turned},
    metrics::Metrics,
};

mod connection;

use connection::{Connection, Connector, State};

/// A Redis server, cluster or sentinel group. Cheap to clone.
#[derive(Clone)]
pub struct Redis(Arc<Inner>);

struct Inner {
    state: watch::Receiver<State>,
    connector: AbortHandle,
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
    /// Redis answers, but is not the server to ask: a replica, or one that is not ready. It is left for another.
    #[error("{0}")]
    NotServing(Arc<str>),
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

/// How a server says that it is not the one to ask.
const NOT_SERVING: [&str; 3] = ["READONLY", "LOADING", "MASTERDOWN"];

/// A connection that owes an answer for this long is given up and made anew.
const UNRESPONSIVE: Duration = Duration::from_millis(500);

impl Redis {
    /// Takes the settings, and connects in the background for as long as it takes: the server need not
    /// be up. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`RedisError`] when the settings cannot be used.
    pub fn connect(url: &RedisUrl, limit: Duration, metrics: &Metrics) -> Result<Self, RedisError> {
        Self::connect_by(url, limit, metrics, Arc::new(SystemLookup))
    }

    /// The same, with names looked up by `lookup`.
    ///
    /// # Errors
    /// [`RedisError`] when the settings cannot be used.
    pub fn connect_by(
        url: &RedisUrl,
        limit: Duration,
        metrics: &Metrics,
        lookup: Arc<dyn Lookup>,
    ) -> Result<Self, RedisError> {
        let mut config = url.to_config()?;
        config.version = RespVersion::RESP3;
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
        let (sender, state) = watch::channel(State::Connecting);
        let failures = Failures::default();
        let connector = Connector { config, connection, performance, lookup, failures, state: sender };
        let connector = tokio::spawn(connector.run()).abort_handle();
        let gate = Gate::new(STORE, limit, PLACES, metrics);
        let ping = metrics.store_duration(STORE, "ping");
        Ok(Self(Arc::new(Inner { state, connector, gate, ping })))
    }

    /// Makes a guarded call, counted under `duration`. Where the server says that it is not the one to ask, it is
    /// left, and the next calls go to another.
    ///
    /// # Errors
    /// [`RedisError`] when there is no answer, or none that was hoped for.
    pub async fn call<T, E: Into<RedisError>, F: Future<Output = Result<T, E>>>(
        &self,
        duration: &Histogram,
        call: impl FnOnce(Client) -> F,
    ) -> Result<T, RedisError> {
        let call = async {
            let connection = self.connected().await?;
            let result = call(connection.client.clone()).await.map_err(Into::into);
            if let Err(error @ RedisError::NotServing(_)) = &result {
                connection.leave(error);
            }
            result
        };
        self.0.gate.call(duration, call).await
    }

    /// The connection of this moment. Waits for an attempt that has just begun.
    async fn connected(&self) -> Result<Arc<Connection>, RedisError> {
        let mut state = self.0.state.clone();
        let ended = || RedisError::Unavailable("not connected".into());
        match &*state.wait_for(|state| !matches!(state, State::Connecting)).await.map_err(|_| ended())? {
            State::Connected(connection) => Ok(Arc::clone(connection)),
            State::Lost(error) => Err(error.clone()),
            State::Connecting => Err(ended()),
        }
    }

    /// Answers once Redis answers.
    ///
    /// # Errors
    /// [`RedisError`] with what stands against it.
    pub async fn ping(&self) -> Result<(), RedisError> {
        let ping = |client: Client| async move { client.ping::<String>(None).await };
        self.call(&self.0.ping, ping).await.map(drop)
    }

    /// What Redis says of itself; of a cluster, what one of its servers does.
    ///
    /// # Errors
    /// [`RedisError`] when it does not say.
    pub async fn usage(&self) -> Result<ServerUsage, RedisError> {
        let info = |client: Client| async move { client.info::<String>(Some(InfoKind::All)).await };
        let info = self.call(&self.0.ping, info).await?;
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

impl Drop for Inner {
    fn drop(&mut self) {
        self.connector.abort();
    }
}

impl From<fred::error::Error> for RedisError {
    fn from(error: fred::error::Error) -> Self {
        let words: Arc<str> = error.details().into();
        // Before version 7, a script's error has what it says behind words of its own and a hyphen.
        if words.split([' ', '-']).any(|word| NOT_SERVING.contains(&word)) {
            return Self::NotServing(words);
        }
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
