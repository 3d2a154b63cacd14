//! `keystile serve`: builds the components, starts the listeners, and drains them at shutdown.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use envoy_types::pb::envoy::service::auth::v3::authorization_server::SERVICE_NAME;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tracing::{info, warn};

use crate::{
    admin::{self, Stats, TlsStates},
    authorizer::Authorizer,
    bounds::{self, Connections, InFlight},
    clock::{self, Timestamps},
    config::{ClientName, DurableProofs, Listen, RateLimit, RedisOptions, ServeOptions, TlsFiles},
    credential::{Credential, brands::KeyBrands},
    ext_authz::{self, ExtAuthz, ExtAuthzConfig, FieldFilter, RequestConfig, headers, metadata},
    health::Health,
    http_server::HttpServer,
    limiter::{self, Limiter},
    metrics::Metrics,
    proof::{MAX_AGE, ProofKey},
    proof_writer::{ProofQueue, proof_writer},
    redis::Redis,
    revocation::{ChangeFeed, Fence},
    store::{
        Database, DatabaseWithProofs, LowerTier, Memory, MemoryConfig, RedisTier, RedisTierConfig, UsageTable,
    },
    tcp_listener,
    tls::{self, Tls, TlsListener, TlsSource},
    usage::{Usage, UsageWriter},
    verifier::{self, Verifier, VerifierConfig},
};

mod answers;
mod cache_secret;
mod calls;
mod connection;
mod last_seen;
mod listener;
mod other;
mod stream;
mod watch;

use cache_secret::{LastingSecrets, cache_secrets};
use last_seen::watch_last_seen;
use listener::Listener;
use watch::{learn_cost, watch_database, watch_limiter, watch_redis};

/// Maximum time to write the last proofs at shutdown. A lost proof costs one bcrypt computation and nothing else.
const LAST_PROOFS: Duration = Duration::from_secs(1);
/// Maximum time that a connection from Envoy may have no calls. Health checks are calls: they alone keep a connection
/// open.
const GRPC_IDLE: Duration = Duration::from_secs(15 * 60);
/// The same limit on the admin port: longer than the usual interval between two scrapes.
const ADMIN_IDLE: Duration = Duration::from_secs(90);

/// Serves until `shutdown` resolves, then drains.
///
/// # Errors
/// Returns an error if the service cannot start, with the flag and its value, or if a listener fails.
pub async fn run(options: ServeOptions, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let metrics = Metrics::new()?;
    let LastingSecrets { secrets, is_lasting } = cache_secrets(&options)?;
    let descriptors = bounds::raise_descriptor_limit();
    let tls = grpc_tls(&options, &metrics)?;
    let admin_tls = tls_of(options.admin_tls.files(ClientName::clone), TlsListener::Admin, &metrics)?;
    let admin_listener = bind_admin(options.admin_listen).await?;
    let listeners = bind_all(&options).await?;

    let database = Database::connect(&options.database, &metrics)?.with_account_lock(options.account_lock);
    let redis = connect_redis(&options.redis, &metrics)?;
    let fence = Arc::new(Fence::new(clock::monotonic()));
    let shared = redis.clone().map(|redis| {
        let config = RedisTierConfig {
            record_ttl: options.record_ttl,
            proof_ttl: options.proof_ttl,
            account_lock: options.account_lock,
        };
        RedisTier::new(database.clone(), redis, secrets.clone(), config, Arc::clone(&fence), &metrics)
    });
    let durable = is_lasting && shared.is_none() && options.durable_proofs != DurableProofs::None;
    let below = match &shared {
        Some(shared) => LowerTier::Redis(shared.clone()),
        None if durable => {
            let proven = DatabaseWithProofs::new(database.clone(), secrets.clone(), &metrics);
            LowerTier::DatabaseWithProofs(Box::new(proven))
        }
        None => LowerTier::Database(database.clone()),
    };
    let probed = shared.clone();
    let covered = if durable { options.durable_proofs.clone() } else { DurableProofs::None };
    let (proofs, proof_writer) = proof_writer(covered, secrets.clone(), database.clone(), &metrics);
    let memory = Memory::new(below, memory_config(&options), Arc::clone(&fence), &metrics);
    let verifier = Verifier::new(secrets, verifier_config(&options), share_by(shared, proofs), &metrics);
    let limiter = limiter(&options, redis.as_ref(), &metrics)?;
    let authorizer = Authorizer::new(memory.clone(), verifier.clone(), limiter.clone());
    let usage = Usage::new(!options.usage_interval.is_zero(), &metrics);
    let service = ExtAuthz::new(authorizer, usage.clone(), ext_authz_config(&options)?, &metrics);
    let feed = ChangeFeed::new(database.clone(), fence, move |prefixes| memory.forget(prefixes), &metrics);
    let stats = Stats {
        metrics: metrics.clone(),
        database: database.clone(),
        redis: redis.clone(),
        feed: feed.state(),
    };
    let feed_state = feed.state();

    let health = Health::starting();
    let stop = CancellationToken::new();
    let in_flight = InFlight::new(&metrics);
    let limit = bounds::grpc_connections(descriptors, options.database.database_connections);
    let connections = Connections::new("grpc", limit, GRPC_IDLE, &metrics);
    let admin_connections = Connections::new("admin", bounds::ADMIN_CONNECTIONS, ADMIN_IDLE, &metrics);
    let routes = beside_checks(&health)?;
    let mut servers = JoinSet::new();
    for listener in listeners {
        info!(address = %listener.address(), "answering checks");
        let (connections, in_flight) = (connections.clone(), in_flight.clone());
        let (service, routes, tls, stop) = (service.clone(), routes.clone(), tls.clone(), stop.clone());
        servers.spawn(listener.serve(service, routes, connections, in_flight, tls, stop));
    }
    info!(address = %admin_listener.local_addr()?, "admin");
    // These tasks are not drained: they report the state of the servers during the drain.
    let mut attendants = JoinSet::new();
    let tls_states = TlsStates { grpc: tls.clone(), admin: admin_tls.clone() };
    let admin_routes = admin::router(health.clone(), metrics.clone(), stats, feed_state, tls_states);
    let admin_server = HttpServer {
        listener: admin_listener,
        routes: admin_routes,
        connections: admin_connections,
        tls: admin_tls.clone(),
        keep_alive: bounds::REQUEST_DEADLINE,
    };
    attendants.spawn(admin_server.run(CancellationToken::new()));
    for tls in [tls, admin_tls].into_iter().flatten() {
        attendants.spawn(tls.watch(tls::INTERVAL));
    }
    attendants.spawn(connections.watch());
    attendants.spawn(in_flight.clone().watch());
    attendants.spawn(watch_database(database.clone(), feed.state(), health.clone(), metrics.clone()));
    let (url, seen_in) = (options.database.database_url.clone(), redis.clone());
    attendants.spawn(watch_last_seen(database.clone(), url, seen_in, feed.state(), metrics.clone()));
    attendants.spawn(async { match feed.run().await {} });
    attendants.spawn(learn_cost(database.clone(), verifier, metrics.clone()));
    attendants.spawn(watch_limiter(limiter.clone(), metrics.clone()));
    attendants.spawn(limiter.clone().maintain());
    if let Some(redis) = probed {
        attendants.spawn(watch_redis(redis, metrics.clone()));
    }
    let table = UsageTable::new(database, &options.usage_columns);
    let writer = UsageWriter::new(usage, table, options.usage_interval, &metrics);
    let writer = tokio::spawn(writer.run(stop.clone().cancelled_owned()));
    let proof_writer = tokio::spawn(proof_writer.run(stop.clone().cancelled_owned()));

    let broken = tokio::select! {
        () = shutdown => None,
        ended = servers.join_next() => ended,
    };
    info!(timeout = ?options.drain_timeout, "draining");
    health.drain();
    in_flight.drain();
    stop.cancel();
    let drained =
        tokio::time::timeout(options.drain_timeout, async { while servers.join_next().await.is_some() {} });
    if drained.await.is_err() {
        warn!("calls were still in progress at the end of --drain-timeout");
    }
    // The usage of the last calls is written too.
    writer.await.context("writing usage")?.finish(options.drain_timeout).await;
    proof_writer.await.context("writing proofs")?.finish(LAST_PROOFS).await;
    attendants.abort_all();
    limiter.leave().await;
    match broken {
        Some(ended) => ended.context("a listener panicked")?,
        None => Ok(()),
    }
}

/// Resolves when the process receives a signal to stop.
///
/// # Errors
/// Returns an error if the system does not allow signal handlers.
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

/// gRPC health and reflection, which every listener serves in addition to checks.
fn beside_checks(health: &Health) -> anyhow::Result<Routes> {
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
    Ok(Routes::new(health_service).add_service(reflection.build_v1()?))
}

fn grpc_tls(options: &ServeOptions, metrics: &Metrics) -> anyhow::Result<Option<Tls>> {
    let files = options.tls.files(ClientName::clone);
    if files.is_some() && options.listen.iter().all(|address| matches!(address, Listen::Unix(_))) {
        warn!(
            "--tls-cert-file has no effect: TLS is for listeners on TCP, and --listen has only Unix sockets"
        );
    }
    tls_of(files, TlsListener::Grpc, metrics)
}

fn tls_of(files: Option<TlsFiles>, listener: TlsListener, metrics: &Metrics) -> anyhow::Result<Option<Tls>> {
    files.map(|files| Tls::new(TlsSource::Files(files), listener, metrics)).transpose()
}

async fn bind_all(options: &ServeOptions) -> anyhow::Result<Vec<Listener>> {
    let mut listeners = Vec::with_capacity(options.listen.len());
    let tcp = |address: &Listen| if let Listen::Tcp(address) = address { Some(*address) } else { None };
    let all_tcp: Vec<_> = options.listen.iter().filter_map(tcp).collect();
    for address in &options.listen {
        let listener = Listener::bind(address, options.socket_mode, &all_tcp).await;
        listeners.push(listener.with_context(|| format!("--listen {address}"))?);
    }
    Ok(listeners)
}

async fn bind_admin(address: SocketAddr) -> anyhow::Result<TcpListener> {
    tcp_listener::bind(address).await.with_context(|| format!("--admin-listen {address}"))
}

fn limiter(options: &ServeOptions, redis: Option<&Redis>, metrics: &Metrics) -> anyhow::Result<Limiter> {
    match options.rate_limit {
        RateLimit::Off => Ok(Limiter::Off),
        RateLimit::Local => Ok(Limiter::Local(limiter::LocalLimiter::new(metrics))),
        RateLimit::Redis => {
            let redis = redis.context("--rate-limit redis: needs --redis-url, or use --rate-limit local")?;
            let config = limiter::RedisLimiterConfig {
                charge: options.rate_limit_charge,
                on_loss: options.rate_limit_on_loss,
            };
            Ok(Limiter::Redis(limiter::RedisLimiter::new(redis.clone(), config, metrics)))
        }
    }
}

fn connect_redis(options: &RedisOptions, metrics: &Metrics) -> anyhow::Result<Option<Redis>> {
    let Some(url) = &options.redis_url else { return Ok(None) };
    let redis = Redis::connect(url, options.redis_timeout, metrics);
    redis.map(Some).with_context(|| format!("--redis-url {url}"))
}

/// Stores a proof outside this process's memory: in the database and in Redis.
fn share_by(
    shared: Option<RedisTier<Database>>,
    proofs: ProofQueue,
) -> impl Fn(&Credential, ProofKey, verifier::ShareReason) + Send + Sync {
    move |credential, proof_key, why| {
        let now = Timestamps::now();
        let longest = match why {
            verifier::ShareReason::Proven => {
                // A stored proof is valid from now on for its full lifetime.
                proofs.put(credential, &proof_key, now.wall);
                MAX_AGE
            }
            verifier::ShareReason::Extended(left) => left,
        };
        shared.iter().for_each(|shared| shared.share(credential.prefix(), proof_key, longest, now));
    }
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
        failed_attempts: options.failed_attempts.0,
        capacity: options.memory_capacity,
        proof_ttl: options.proof_ttl,
        negative_ttl: options.negative_ttl,
    }
}

fn ext_authz_config(options: &ServeOptions) -> anyhow::Result<ExtAuthzConfig> {
    let headers = headers::TABLE.iter().map(|header| header.name);
    let fields = metadata::TABLE.iter().map(|field| field.name);
    Ok(ExtAuthzConfig {
        request: RequestConfig {
            credential_sources: options.credential_sources.clone(),
            key_brands: KeyBrands::new(options.key_brands.clone()),
            client_address: options.client_address,
            remove_headers: options.remove_headers,
        },
        forward_credential: options.forward_credential,
        timeout: options.timeout,
        on_failure: options.on_failure,
        mode: options.mode,
        deny_format: options.deny_format,
        rotation_link: options.rotation_link.clone(),
        rate_limit_fields: options.rate_limit_fields,
        upstream_headers: field_filter("--upstream-headers", &options.upstream_headers, headers)?,
        metadata: field_filter("--metadata", &options.metadata, fields)?,
    })
}

fn field_filter(
    flag: &str,
    names: &[String],
    table: impl Iterator<Item = &'static str> + Clone,
) -> anyhow::Result<FieldFilter> {
    FieldFilter::parse(names, table.clone()).map_err(|unknown| {
        let known = table.collect::<Vec<_>>().join(", ");
        anyhow::anyhow!("{flag}: Keystile does not send {unknown:?}; the names are: all, none, {known}")
    })
}
