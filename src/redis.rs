//! The connection to Redis. All callers share one connection.

use std::{future::Future, sync::Arc, time::Duration};

use fred::{
    clients::Client,
    interfaces::ClientLike,
    types::{
        InfoKind, RespVersion,
        config::{ConnectionConfig, PerformanceConfig, TcpConfig, UnresponsiveConfig},
    },
};
use metrics::Histogram;
use tokio::{sync::watch, task::AbortHandle};

use crate::{
    addresses::{Failures, Resolver, SystemResolver},
    config::RedisUrl,
    metrics::Metrics,
    resilience::{CAPACITY, DependencyGuard},
};

mod connection;
mod error;

pub use error::{RedisError, STORE};

use connection::{Connection, Connector, State};

/// A Redis server, cluster or sentinel group. Cheap to clone.
#[derive(Clone)]
pub struct Redis(Arc<Inner>);

struct Inner {
    state: watch::Receiver<State>,
    connector: AbortHandle,
    guard: DependencyGuard,
    ping: Histogram,
}

/// Redis's report about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct ServerUsage {
    /// `used_memory`, in bytes.
    pub memory_bytes: u64,
    /// `connected_clients`.
    pub clients: u64,
    /// `evicted_keys` since it started.
    pub evicted_keys: u64,
}

/// A connection that does not answer for this long is closed and replaced.
const UNRESPONSIVE: Duration = Duration::from_millis(500);

impl Redis {
    /// Validates the settings, and connects in the background without a time limit: the server need not be up. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// [`RedisError`] when the settings cannot be used.
    pub fn connect(url: &RedisUrl, limit: Duration, metrics: &Metrics) -> Result<Self, RedisError> {
        Self::connect_by(url, limit, metrics, Arc::new(SystemResolver))
    }

    /// The same, with `resolver` for the lookup of names.
    ///
    /// # Errors
    /// [`RedisError`] when the settings cannot be used.
    pub fn connect_by(
        url: &RedisUrl,
        limit: Duration,
        metrics: &Metrics,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Self, RedisError> {
        let mut config = url.to_config()?;
        config.version = RespVersion::RESP3;
        let connection = ConnectionConfig {
            connection_timeout: Duration::from_secs(1).max(limit),
            internal_command_timeout: UNRESPONSIVE.max(limit),
            // No second attempt: the caller no longer waits by then.
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
        let connector = Connector { config, connection, performance, resolver, failures, state: sender };
        let connector = tokio::spawn(connector.run()).abort_handle();
        let guard = DependencyGuard::new(STORE, limit, CAPACITY, metrics);
        let ping = metrics.store_duration(STORE, "ping");
        Ok(Self(Arc::new(Inner { state, connector, guard, ping })))
    }

    /// Makes a guarded call, recorded in `duration`. If the server answers that it cannot serve calls, this client
    /// disconnects from it, and the next calls go to another server.
    ///
    /// # Errors
    /// [`RedisError`] if Redis does not answer, or answers with an error.
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
        self.0.guard.call(duration, call).await
    }

    /// The current connection. Waits for an attempt that has just begun.
    async fn connected(&self) -> Result<Arc<Connection>, RedisError> {
        let mut state = self.0.state.clone();
        let ended = || RedisError::Unavailable("not connected".into());
        match &*state.wait_for(|state| !matches!(state, State::Connecting)).await.map_err(|_| ended())? {
            State::Connected(connection) => Ok(Arc::clone(connection)),
            State::Lost(error) => Err(error.clone()),
            State::Connecting => Err(ended()),
        }
    }

    /// Sends a ping and waits for the answer.
    ///
    /// # Errors
    /// [`RedisError`] with the reason why Redis cannot be used.
    pub async fn ping(&self) -> Result<(), RedisError> {
        let ping = |client: Client| async move { client.ping::<String>(None).await };
        self.call(&self.0.ping, ping).await.map(drop)
    }

    /// Redis's report about itself. For a cluster, the report of one of its servers.
    ///
    /// # Errors
    /// [`RedisError`] if Redis does not answer.
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
