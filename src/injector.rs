//! The Kubernetes sidecar injector: an admission webhook that adds Keystile to pods.
//!
//! It reads nothing from the cluster. A pod's options are in the pod. Whether its whole namespace is enabled shows in
//! the path that the API server calls.

use std::{future::Future, net::TcpListener, time::Duration};

use anyhow::Context;
use axum_server::Handle;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    bounds::{self, Connections, InFlight},
    config::InjectOptions,
    metrics::Metrics,
};

mod acceptor;
mod admin;
mod admission;
mod annotations;
mod certificate;
mod patch;
mod pod;
mod sidecar;
mod webhook;

pub use annotations::Scope;
pub use patch::{Injection, review};
pub use pod::InvalidPod;
pub use sidecar::Sidecar;

use acceptor::BoundedAcceptor;
use certificate::Source;

/// How long connections with a review under way may take to end.
const DRAIN: Duration = Duration::from_secs(5);
/// Deadline of a connection's first request. Slow connections must not pile up.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// How long a connection may be idle: longer than API servers keep one, so that they close it.
const IDLE: Duration = Duration::from_secs(120);
/// Connections of API servers. A cluster has a few API servers.
const CONNECTIONS: usize = 128;

/// Answers the API server until `shutdown` resolves, then drains.
///
/// # Errors
/// When the injector cannot start, with flag and value, or its listener fails.
pub async fn run(options: InjectOptions, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let metrics = Metrics::new()?;
    bounds::raise_descriptor_limit();
    let draining = CancellationToken::new();
    let source = Source::of(&options)?;
    let certificate = source.load(&metrics)?;
    let tls = certificate.tls();
    let webhook = listen(&options)?;
    let admin_listener = tokio::net::TcpListener::bind(options.admin_listen)
        .await
        .with_context(|| format!("--admin-listen {}", options.admin_listen))?;

    let routes = admin::router(source.authority(), draining.clone(), metrics.clone());
    let admin_connections = Connections::new("admin", bounds::ADMIN_CONNECTIONS, IDLE, &metrics);
    let admin = tokio::spawn(bounds::serve_http(admin_listener, routes, admin_connections));
    let upkeep = tokio::spawn(upkeep(metrics.clone()));
    let renewal = tokio::spawn(certificate.keep_fresh(source, options.tls_interval));

    let handle = Handle::new();
    let service = webhook::router(Sidecar::from(&options), InFlight::new(&metrics), &metrics);
    let connections = Connections::new("webhook", CONNECTIONS, IDLE, &metrics);
    let watch = tokio::spawn(connections.clone().watch());
    let mut server = axum_server::from_tcp_rustls(webhook, tls)?
        .map(|acceptor| BoundedAcceptor::new(acceptor, connections))
        .first_request_timeout(FIRST_REQUEST)
        .handle(handle.clone())
        // HTTP/2 is not offered in the handshake.
        .http1_only();
    server.http_builder().http1().header_read_timeout(IDLE);
    let mut server = tokio::spawn(server.serve(service.into_make_service()));
    info!(address = %options.listen, image = options.image, "answering the API server");

    let broken = tokio::select! {
        () = shutdown => None,
        ended = &mut server => Some(ended),
    };
    draining.cancel();
    if broken.is_none() {
        info!(delay = ?options.drain_delay, "draining");
        // The API server calls this instance until its endpoints have changed.
        sleep(options.drain_delay).await;
        handle.graceful_shutdown(Some(DRAIN));
    }
    let ended = match broken {
        Some(ended) => ended,
        None => server.await,
    };
    for task in [upkeep, renewal, watch] {
        task.abort();
    }
    admin.abort();
    ended.context("the webhook's listener panicked")?.context("the webhook's listener broke")
}

fn listen(options: &InjectOptions) -> anyhow::Result<TcpListener> {
    let listener =
        TcpListener::bind(options.listen).with_context(|| format!("--listen {}", options.listen))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn upkeep(metrics: Metrics) {
    let mut tick = interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        metrics.upkeep();
    }
}
