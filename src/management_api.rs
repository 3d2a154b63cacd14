//! `keystile management`: the API that creates, changes, rotates and revokes keys and users, for portals and other
//! programs. It is a process of its own, with a database role of its own: the process that answers checks can only read.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use parking_lot::Mutex;
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    bounds::{self, Connections},
    config::{ManagementClient, ManagementOptions},
    http_server::HttpServer,
    metrics::Metrics,
    store::{Database, ManagementError},
    tcp_listener,
    tls::{self, Tls, TlsListener, TlsSource},
};

mod access;
mod admin;
mod api;
mod attempts;
mod authentication;
mod body;
mod changes;
mod keys;
mod openapi;
mod problem;
mod query;
mod request_id;
mod resource;
mod routes;
mod users;
mod versions;
mod wait;

pub use openapi::document;

use api::{Api, Inner, TokenUses};
use attempts::Attempts;

/// How long a connection may be idle between two requests.
const IDLE: Duration = Duration::from_secs(75);

/// Maximum number of connections.
const CONNECTIONS: usize = 256;

/// How often old requests are forgotten.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// Serves the API until `shutdown` resolves, then drains.
///
/// # Errors
/// Returns an error if the API cannot start: a setting is wrong, no caller would have access, or connections from other
/// machines would not be encrypted.
pub async fn run(options: ManagementOptions, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let metrics = Metrics::new()?;
    bounds::raise_descriptor_limit();
    let clients = options.tls.client_names.clone();
    let files = options.tls.files(|client| client.name.clone());
    if files.is_none() && !options.listen.ip().is_loopback() {
        bail!(
            "--listen {}: beyond loopback, the API needs TLS; set --tls-cert-file and --tls-key-file",
            options.listen
        );
    }
    let tls = files.map(|files| Tls::new(TlsSource::Files(files), TlsListener::Management, &metrics));
    let tls = tls.transpose()?;
    let database = Database::connect(&options.database, &metrics)?;
    refuse_without_callers(&database, &clients).await?;

    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let api = Api(Arc::new(Inner {
        database: database.clone(),
        clients,
        brand: options.brand.clone(),
        cost: options.cost.of_new_hashes(),
        mode: options.mode,
        account_lock: options.account_lock,
        counted: options.counted,
        requests: Attempts::new(options.rate_limit.0),
        failures: Attempts::new(options.failed_attempts.0),
        uses: TokenUses::default(),
        in_progress: Mutex::default(),
        bcrypt: Semaphore::new(cores),
        metrics: metrics.clone(),
    }));
    let (stop, draining) = (CancellationToken::new(), CancellationToken::new());
    let server = HttpServer {
        listener: bind("--listen", options.listen).await?,
        routes: routes::router(api),
        connections: Connections::new("management", CONNECTIONS, IDLE, &metrics),
        tls: tls.clone(),
        keep_alive: IDLE,
    };
    let admin = HttpServer {
        listener: bind("--admin-listen", options.admin_listen).await?,
        routes: admin::router(database.clone(), tls.clone(), draining.clone(), metrics.clone()),
        connections: Connections::new("admin", bounds::ADMIN_CONNECTIONS, IDLE, &metrics),
        tls: None,
        keep_alive: bounds::REQUEST_DEADLINE,
    };
    info!(address = %server.listener.local_addr()?, tls = tls.is_some(), "serving the management API");
    let mut attendants =
        vec![tokio::spawn(admin.run(CancellationToken::new())), tokio::spawn(prune(database))];
    attendants.extend(tls.map(|tls| tokio::spawn(tls.watch(tls::INTERVAL))));
    let server = tokio::spawn(server.run(stop.clone()));

    shutdown.await;
    info!(timeout = ?options.drain_timeout, "draining");
    draining.cancel();
    stop.cancel();
    match timeout(options.drain_timeout, server).await {
        Ok(ended) => ended.context("the listener panicked")?,
        Err(_) => warn!("requests were still in progress at the end of --drain-timeout"),
    }
    attendants.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

/// An API that no caller can use is a mistake; one that each caller can use would be a worse one.
async fn refuse_without_callers(database: &Database, clients: &[ManagementClient]) -> anyhow::Result<()> {
    let has_token = match database.has_valid_token().await {
        Ok(has_token) => has_token,
        Err(ManagementError::Store(error)) => return Err(error.into()),
        Err(error) => return Err(error.into()),
    };
    if has_token || clients.iter().any(|client| client.scope.is_some()) {
        return Ok(());
    }
    bail!(
        "no caller is allowed: there is no valid token, and --tls-client-names gives no client a scope; create a token with \
         `keystile management-tokens create`, or name a client such as write:portal.internal"
    )
}

async fn bind(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    tcp_listener::bind(address).await.with_context(|| format!("{flag} {address}"))
}

async fn prune(database: Database) {
    let mut tick = interval(PRUNE_INTERVAL);
    loop {
        tick.tick().await;
        if let Err(error) = database.prune_requests().await {
            warn!(%error, "old requests could not be forgotten");
        }
    }
}
