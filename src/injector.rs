//! The Kubernetes sidecar injector: an admission webhook that adds Keystile to pods.
//!
//! It reads nothing from the cluster. A pod's options are in the pod. Whether its whole namespace is enabled shows in
//! the path that the API server calls.

use std::{future::Future, net::SocketAddr, time::Duration};

use anyhow::Context;
use tokio::{
    net::TcpListener,
    time::{interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    bounds::{self, Connections, InFlight},
    config::InjectOptions,
    http_server::HttpServer,
    metrics::Metrics,
    tcp_listener,
    tls::{Tls, TlsListener},
};

mod admin;
mod admission;
mod annotations;
mod certificate;
mod patch;
mod pod;
mod sidecar;
mod webhook;

pub use admission::{Review, ReviewError};
pub use annotations::Scope;
pub use patch::{Injection, review};
pub use pod::InvalidPod;
pub use sidecar::Sidecar;

use certificate::certificate;

/// How long connections with a review under way may take to end.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a connection may be idle: longer than API servers keep one, so that they close it.
const IDLE: Duration = Duration::from_secs(120);
/// Connections of API servers. A cluster has a few API servers.
const CONNECTIONS: usize = 128;

/// Answers the API server until `shutdown` resolves, then drains.
///
/// # Errors
/// When the injector cannot start, with flag and value.
pub async fn run(options: InjectOptions, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let metrics = Metrics::new()?;
    bounds::raise_descriptor_limit();
    let (draining, stop) = (CancellationToken::new(), CancellationToken::new());
    let (source, authority) = certificate(&options)?;
    let tls = Tls::new(source, TlsListener::Webhook, &metrics)?;
    let webhook = HttpServer {
        listener: bind("--listen", options.listen).await?,
        routes: webhook::router(Sidecar::from(&options), InFlight::new(&metrics), &metrics),
        connections: Connections::new("webhook", CONNECTIONS, IDLE, &metrics),
        tls: Some(tls.clone()),
        keep_alive: IDLE,
    };
    let admin = HttpServer {
        listener: bind("--admin-listen", options.admin_listen).await?,
        routes: admin::router(authority, draining.clone(), metrics.clone()),
        connections: Connections::new("admin", bounds::ADMIN_CONNECTIONS, IDLE, &metrics),
        tls: None,
        keep_alive: bounds::REQUEST_DEADLINE,
    };
    let attendants = [
        tokio::spawn(admin.run(CancellationToken::new())),
        tokio::spawn(upkeep(metrics)),
        tokio::spawn(tls.watch(options.tls_interval)),
    ];
    let server = tokio::spawn(webhook.run(stop.clone()));
    info!(address = %options.listen, image = options.image, "answering the API server");

    shutdown.await;
    draining.cancel();
    info!(delay = ?options.drain_delay, "draining");
    // The API server calls this instance until its endpoints have changed.
    sleep(options.drain_delay).await;
    stop.cancel();
    if let Ok(ended) = timeout(DRAIN, server).await {
        ended.context("the webhook's listener panicked")?;
    }
    attendants.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

async fn bind(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    tcp_listener::bind(address).await.with_context(|| format!("{flag} {address}"))
}

async fn upkeep(metrics: Metrics) {
    let mut tick = interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        metrics.upkeep();
    }
}
