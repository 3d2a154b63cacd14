//! Keeps one connection to Redis. Connects again when the connection is lost or its server cannot serve calls.
//!
//! Each attempt resolves the name again and connects to one address. An address that failed is tried after the others.
//! The client's own reconnection does neither, so it is switched off.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use fred::{
    clients::Client,
    error::ErrorKind,
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
use crate::{
    addresses::{Failures, Resolver},
    clock,
    dependencies::{Cause, ErrorText},
};

/// The state of the connection, as calls see it.
#[derive(Clone)]
pub(super) enum State {
    /// The first attempt after the start, or after a loss, is in progress. Calls wait for it.
    Connecting,
    Connected(Arc<Connection>),
    /// The last attempt failed. More attempts follow.
    Lost(RedisError),
}

/// A connection without a known fault.
pub(super) struct Connection {
    pub(super) client: Client,
    /// The reason to disconnect from its server.
    leave: watch::Sender<Option<RedisError>>,
}

/// Connects and reconnects while it runs.
pub(super) struct Connector {
    pub(super) config: Config,
    pub(super) connection: ConnectionConfig,
    pub(super) performance: PerformanceConfig,
    pub(super) resolver: Arc<dyn Resolver>,
    pub(super) failures: Failures<SocketAddr>,
    pub(super) state: watch::Sender<State>,
}

/// The shortest and the longest pause before the next attempt. The pause doubles each time. Recovery must be noticed
/// within 2 s.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// Minimum lifetime of a connection, even if its server cannot serve some calls. If there is no better server,
/// disconnecting at every call would break the calls that this server can answer.
const MIN_LIFE: Duration = Duration::from_millis(500);

/// If the client leaves a server sooner than this after the last one, there is no new warning.
const QUIET: Duration = Duration::from_secs(10);

/// Maximum time for the lookup of a name.
const LOOKUP: Duration = Duration::from_secs(1);

impl Connection {
    /// Requests a disconnect from the server, and a connection to another one.
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
                                warn!(%reason, store = STORE, "switching to another address of the server's name");
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

    /// Makes one attempt. Also returns the address that was tried first.
    async fn attempt(&self) -> Result<(Arc<Connection>, Router, Option<SocketAddr>), RedisError> {
        let (config, first) = self.resolved().await?;
        let has_tls = config.tls.is_some();
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
                if has_tls && *error.kind() == ErrorKind::Timeout {
                    // A server without TLS takes the handshake for part of a command, and waits for the rest.
                    let silent = "no answer in time, as from a server without TLS: if it has none, the URL begins with redis://";
                    return Err(RedisError::Unavailable(ErrorText::new(Cause::Tls, silent)));
                }
                // The client closes such a connection itself, or reads the end of it, or its reset.
                if !has_tls && *error.kind() == ErrorKind::IO && !error.details().contains("Refused") {
                    let error = RedisError::from(error);
                    let closed = format!("{error}; if the server has TLS, the URL begins with rediss://");
                    return Err(RedisError::Unavailable(ErrorText::new(Cause::Unreachable, closed)));
                }
                Err(error.into())
            }
        }
    }

    /// The settings with addresses in place of names, and the address that is tried first, if that is known.
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
            // A cluster node may answer "the host that you know me by". Its certificate is for the name, so the name is
            // kept.
            ServerConfig::Clustered { hosts, .. } if has_tls => {
                hosts.iter_mut().for_each(|server| server.host = without_brackets(&server.host).into());
                None
            }
            ServerConfig::Clustered { hosts, .. } => {
                let found = self.servers(hosts, has_tls).await?;
                *hosts = found.into_iter().map(|(_, server)| server).collect();
                None
            }
            ServerConfig::Unix { .. } => None,
        };
        Ok((config, first))
    }

    /// All addresses of these hosts, at least one, in the order in which they are tried.
    async fn servers(
        &self,
        hosts: &[Server],
        has_tls: bool,
    ) -> Result<Vec<(SocketAddr, Server)>, RedisError> {
        let looked_up = join_all(hosts.iter().map(|server| async move {
            let host = without_brackets(&server.host);
            let lookup = timeout(LOOKUP, self.resolver.addresses(host, server.port)).await;
            let addresses = lookup.map_err(|_| format!("{host}: the lookup of the name timed out"))?;
            let addresses = addresses.map_err(|error| format!("{host}: {error}"))?;
            let name = server.tls_server_name.clone().or_else(|| has_tls.then(|| host.into()));
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
        if found.is_empty() {
            Err(RedisError::Unavailable(ErrorText::new(Cause::NameUnknown, failure)))
        } else {
            Ok(found)
        }
    }
}

/// A host as certificates have it: an address of IPv6 has brackets in a URL only.
fn without_brackets(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// The background task of a client. It is aborted when this is dropped.
struct Router(ConnectHandle);

impl Drop for Router {
    fn drop(&mut self) {
        self.0.abort();
    }
}
