//! Keeps one connection to Redis, and makes another when it is lost or its server is the wrong one.
//!
//! Each attempt looks the name up again and goes to one address. An address that did not work is tried after the
//! others. The client's own reconnection does neither, so it is switched off.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use fred::{
    clients::Client,
    interfaces::ClientLike,
    types::{
        Builder, ConnectHandle,
        config::{Config, ConnectionConfig, PerformanceConfig, Server, ServerConfig},
    },
};
use futures_util::future::join_all;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::error::{RedisError, STORE};
use crate::addresses::{Failures, Resolver};

use crate::clock;

/// What calls find.
#[derive(Clone)]
pub(super) enum State {
    /// The first attempt after the start, or after a loss, is under way: it is worth waiting for.
    Connecting,
    Connected(Arc<Connection>),
    /// The last attempt failed; further ones follow.
    Lost(RedisError),
}

/// A connection that works, as far as is known.
pub(super) struct Connection {
    pub(super) client: Client,
    /// Why its server is to be left.
    leave: watch::Sender<Option<RedisError>>,
}

/// Connects, for as long as it runs.
pub(super) struct Connector {
    pub(super) config: Config,
    pub(super) connection: ConnectionConfig,
    pub(super) performance: PerformanceConfig,
    pub(super) resolver: Arc<dyn Resolver>,
    pub(super) failures: Failures<SocketAddr>,
    pub(super) state: watch::Sender<State>,
}

/// How long until the next attempt: from the first of these to the last, twice as long each time. Recovery is to be
/// noticed within 2 s.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// A connection is kept for this long at least, whatever its server says: where there is no better one, leaving it at
/// every call would break the calls that it can answer.
const MIN_LIFE: Duration = Duration::from_millis(500);

/// A connection that is left sooner than this is not worth a second warning.
const QUIET: Duration = Duration::from_secs(10);

/// How long a lookup of a name may take.
const LOOKUP: Duration = Duration::from_secs(1);

impl Connection {
    /// Has the server left for another one.
    pub(super) fn leave(&self, reason: &RedisError) {
        self.leave.send_if_modified(|left| left.is_none() && left.replace(reason.clone()).is_none());
    }
}

impl Connector {
    /// Connects and reconnects.
    pub(super) async fn run(self) {
        let (mut pause, mut warned) = (PAUSES.0, None::<Instant>);
        loop {
            match self.attempt().await {
                Ok((connection, mut router, first)) => {
                    let (mut left, since) = (connection.leave.subscribe(), clock::monotonic());
                    self.state.send_replace(State::Connected(connection));
                    let left = async {
                        sleep(MIN_LIFE).await;
                        left.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone())
                    };
                    tokio::select! {
                        _ = &mut router.0 => debug!(store = STORE, "connection lost"),
                        Some(reason) = left => {
                            first.into_iter().for_each(|address| self.failures.add(address, clock::monotonic()));
                            if warned.is_none_or(|at| at.elapsed() > QUIET) {
                                warn!(%reason, store = STORE, "leaving the server for another address of its name");
                            }
                            warned = Some(clock::monotonic());
                        }
                    }
                    self.state.send_replace(State::Connecting);
                    if since.elapsed() >= MIN_LIFE {
                        pause = PAUSES.0;
                    }
                }
                Err(error) => {
                    debug!(%error, store = STORE, "cannot connect");
                    self.state.send_replace(State::Lost(error));
                }
            }
            sleep(pause.mul_f64(rand::random_range(0.75..1.25))).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// One attempt, with the address that it went to first.
    async fn attempt(&self) -> Result<(Arc<Connection>, Router, Option<SocketAddr>), RedisError> {
        let (config, first) = self.resolved().await?;
        let client = Builder::from_config(config)
            .set_connection_config(self.connection.clone())
            .set_performance_config(self.performance.clone())
            .build()?;
        match client.init().await {
            Ok(router) => {
                first.iter().for_each(|address| self.failures.remove(address));
                let connection = Connection { client, leave: watch::Sender::new(None) };
                Ok((Arc::new(connection), Router(router), first))
            }
            Err(error) => {
                first.into_iter().for_each(|address| self.failures.add(address, clock::monotonic()));
                Err(error.into())
            }
        }
    }

    /// The settings with addresses in place of names, and the address that is tried first where that is known.
    async fn resolved(&self) -> Result<(Config, Option<SocketAddr>), RedisError> {
        let (mut config, has_tls) = (self.config.clone(), self.config.tls.is_some());
        let first = match &mut config.server {
            ServerConfig::Centralized { server } => {
                let (address, found) = self.servers(std::slice::from_ref(server), has_tls).await?.remove(0);
                *server = found;
                Some(address)
            }
            ServerConfig::Sentinel { hosts, .. } => {
                let found = self.servers(hosts, has_tls).await?;
                let first = found.first().map(|(address, _)| *address);
                *hosts = found.into_iter().map(|(_, server)| server).collect();
                first
            }
            // A node may say "the host that you know me by"; its certificate is for the name, so the name is kept.
            ServerConfig::Clustered { .. } if has_tls => None,
            ServerConfig::Clustered { hosts, .. } => {
                let found = self.servers(hosts, has_tls).await?;
                *hosts = found.into_iter().map(|(_, server)| server).collect();
                None
            }
            ServerConfig::Unix { .. } => None,
        };
        Ok((config, first))
    }

    /// All addresses of these hosts, in the order in which they are tried: one at least.
    async fn servers(
        &self,
        hosts: &[Server],
        has_tls: bool,
    ) -> Result<Vec<(SocketAddr, Server)>, RedisError> {
        let looked_up = join_all(hosts.iter().map(|server| async move {
            let host = server.host.trim_start_matches('[').trim_end_matches(']');
            let lookup = timeout(LOOKUP, self.resolver.addresses(host, server.port)).await;
            let addresses = lookup.map_err(|_| format!("{host}: no answer to the lookup of the name"))?;
            let addresses = addresses.map_err(|error| format!("{host}: {error}"))?;
            let name = server.tls_server_name.clone().or_else(|| has_tls.then(|| server.host.clone()));
            let server = |address: SocketAddr| {
                let host =
                    if address.is_ipv6() { format!("[{}]", address.ip()) } else { address.ip().to_string() };
                (address, Server::new_with_tls(host, address.port(), name.as_ref().map(ToString::to_string)))
            };
            Ok::<_, String>(addresses.into_iter().map(server).collect::<Vec<_>>())
        }))
        .await;
        let (mut found, mut failure) = (Vec::new(), "the URL names no host".to_owned());
        for lookup in looked_up {
            match lookup {
                Ok(servers) => found.extend(servers),
                Err(error) => failure = error,
            }
        }
        self.failures.sort_by_key(&mut found, clock::monotonic(), |(address, _)| *address);
        if found.is_empty() { Err(RedisError::Unavailable(failure.into())) } else { Ok(found) }
    }
}

/// The task behind a client; it ends with this.
struct Router(ConnectHandle);

impl Drop for Router {
    fn drop(&mut self) {
        self.0.abort();
    }
}
