//! `keystile serve`: builds the parts, starts the listeners, and drains them at the end.

use std::{future::Future, net::SocketAddr, time::Duration};

use anyhow::Context;
use envoy_types::{
    ext_authz::v3::pb::AuthorizationServer, pb::envoy::service::auth::v3::authorization_server::SERVICE_NAME,
};
use tokio::{net::TcpListener, task::JoinSet, time::interval};
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};
use tonic_health::ServingStatus;
use tracing::{info, warn};

use crate::{
    admin,
    authorizer::Authorizer,
    config::ServeOptions,
    credential::CacheSecret,
    ext_authz::{self, ExtAuthz, ExtAuthzConfig, Reading},
    health::Health,
    metrics::Metrics,
    store::{Database, Memory, MemoryConfig},
    verifier::{Verifier, VerifierConfig},
};

mod listener;

use listener::Listener;

/// How often the database is asked whether it is there, and histograms are folded.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Streams that one of Envoy's connections may have open: it opens one connection per worker.
const MAX_STREAMS: u32 = 8192;

/// Serves until `shutdown` resolves, then drains.
///
/// # Errors
/// What keeps the service from starting, by flag and value, or a listener that broke.
pub async fn run(options: ServeOptions, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let metrics = Metrics::new()?;
    let secret = cache_secret(&options)?;
    let admin_listener = bind_admin(options.admin_listen).await?;
    let listeners = bind_all(&options).await?;

    let database = Database::connect(&options.database, &metrics)?;
    let store = Memory::new(database.clone(), memory_config(&options), &metrics);
    let verifier = Verifier::new(secret, verifier_config(&options), &metrics);
    let authorizer = Authorizer::new(store, verifier);
    let service = ExtAuthz::new(authorizer, ext_authz_config(&options), &metrics);

    let health = Health::starting();
    let stop = CancellationToken::new();
    let routes = grpc(service, &health)?;
    let mut servers = JoinSet::new();
    for listener in listeners {
        info!(address = %listener.address(), "answering checks");
        let server = Server::builder().max_concurrent_streams(MAX_STREAMS).add_routes(routes.clone());
        servers.spawn(listener.serve(server, stop.clone()));
    }
    info!(address = %admin_listener.local_addr()?, "admin");
    let admin = axum::serve(admin_listener, admin::router(health.clone(), metrics.clone()));
    // Not drained: it tells that the rest is draining.
    let admin = tokio::spawn(admin.into_future());
    let housekeeping = tokio::spawn(keep_house(database, health.clone(), metrics));

    let broken = tokio::select! {
        () = shutdown => None,
        ended = servers.join_next() => ended,
    };
    info!(timeout = ?options.drain_timeout, "draining");
    health.drain();
    stop.cancel();
    let drained =
        tokio::time::timeout(options.drain_timeout, async { while servers.join_next().await.is_some() {} });
    if drained.await.is_err() {
        warn!("calls were still under way at the end of --drain-timeout");
    }
    housekeeping.abort();
    admin.abort();
    match broken {
        Some(ended) => ended.context("a listener panicked")?,
        None => Ok(()),
    }
}

/// Resolves when the process is told to stop.
///
/// # Errors
/// When the system does not let signals be listened for.
pub fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Checks, gRPC health and reflection, as every listener serves them.
fn grpc(service: ExtAuthz<Memory<Database>>, health: &Health) -> anyhow::Result<Routes> {
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let mut changes = health.changes();
    tokio::spawn(async move {
        loop {
            let ready = changes.borrow_and_update().is_ready();
            let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            for name in ["", SERVICE_NAME] {
                reporter.set_service_status(name, status).await;
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    });
    let descriptors = [ext_authz::DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET];
    let reflection = descriptors.into_iter().fold(
        tonic_reflection::server::Builder::configure(),
        tonic_reflection::server::Builder::register_encoded_file_descriptor_set,
    );
    let checks = AuthorizationServer::new(service).max_decoding_message_size(ext_authz::MAX_MESSAGE_SIZE);
    Ok(Routes::new(checks).add_service(health_service).add_service(reflection.build_v1()?))
}

async fn keep_house(database: Database, health: Health, metrics: Metrics) {
    let mut tick = interval(HOUSEKEEPING);
    loop {
        tick.tick().await;
        let problem = database.ping().await.err().map(|error| error.to_string());
        let before = health.state();
        health.database_answered(problem);
        let after = health.state();
        if before != after {
            let problem = after.problem();
            info!(state = after.name(), problem, "database");
        }
        metrics.upkeep();
    }
}

async fn bind_all(options: &ServeOptions) -> anyhow::Result<Vec<Listener>> {
    let mut listeners = Vec::with_capacity(options.listen.len());
    for address in &options.listen {
        let listener = Listener::bind(address, options.socket_mode).await;
        listeners.push(listener.with_context(|| format!("--listen {address}"))?);
    }
    Ok(listeners)
}

async fn bind_admin(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("--admin-listen {address}"))
}

fn cache_secret(options: &ServeOptions) -> anyhow::Result<CacheSecret> {
    let secrets = options.cache_secrets().map_err(anyhow::Error::msg)?;
    let newest = secrets.as_ref().and_then(|secrets| secrets.iter().next());
    Ok(newest.map_or_else(CacheSecret::random, |secret| CacheSecret::new(secret.expose())))
}

fn memory_config(options: &ServeOptions) -> MemoryConfig {
    MemoryConfig {
        capacity: options.memory_capacity,
        record_ttl: options.record_ttl,
        negative_ttl: options.negative_ttl,
        stale_if_error: options.stale_if_error,
    }
}

fn verifier_config(options: &ServeOptions) -> VerifierConfig {
    VerifierConfig {
        threads: options.bcrypt_threads(),
        cost: options.bcrypt_cost,
        capacity: options.memory_capacity,
        proof_ttl: options.proof_ttl,
        negative_ttl: options.negative_ttl,
    }
}

fn ext_authz_config(options: &ServeOptions) -> ExtAuthzConfig {
    ExtAuthzConfig {
        reading: Reading {
            credential_sources: options.credential_sources.clone(),
            client_address: options.client_address,
        },
        forward_credential: options.forward_credential,
        timeout: options.timeout,
        on_failure: options.on_failure,
        mode: options.mode,
        deny_format: options.deny_format,
    }
}
