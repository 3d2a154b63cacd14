//! TLS of the listeners: files that are read again when they change, and clients that are known by their certificates.
//!
//! Sessions are not resumed: a resumed session would skip the verification of the client's certificate.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::RwLock;
use time::format_description::well_known::Rfc3339;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server};
use tracing::{info, warn};

use crate::{
    bounds::{Connections, Slot},
    clock,
    config::ClientName,
    metrics::{Metrics, TlsMetrics},
};

mod certificate;
mod client;
mod client_verifier;
mod identity;
mod material;
mod peers;
mod private_key;
mod refusals;
mod source;
mod trust;

pub use client::{TlsClient, TlsClientFiles};
pub use source::{Pem, TlsSource};

use material::{Material, Reload};
use peers::{PeerSlot, Peers};
use refusals::RefusalLog;
use source::Content;

/// Interval at which the files are read.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// How long a file must stay the same before it is used: while it is written, it may be a shorter list of CAs.
const SETTLED: Duration = Duration::from_secs(1);

/// Interval at which the certificates of open connections are verified, if something has changed or expired.
const VERIFICATION_INTERVAL: Duration = Duration::from_secs(1);

/// Deadline of a handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// Maximum number of unfinished handshakes. Above it, the oldest ends of the network that has the most. Each may hold some
/// 64 KiB.
const HANDSHAKES: usize = 256;

/// Bytes that a connection may hold encrypted and unsent: one record.
const UNSENT: usize = 16 * 1024;

/// TLS of one listener, or of several together. Cheap to clone.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    source: TlsSource,
    current: RwLock<Arc<Material>>,
    problems: RwLock<Problems>,
    /// Whether the files have changed since the open connections were verified.
    has_changed: AtomicBool,
    peers: Peers,
    handshakes: Connections,
    refusals: RefusalLog,
    metrics: TlsMetrics,
}

/// Why peers may not get in.
#[derive(Default, PartialEq)]
struct Problems {
    /// Files that are there now, and not in use.
    unused: Vec<String>,
    /// The files in use: something has expired, or is missing.
    used: Vec<String>,
}

/// A listener with TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsListener {
    /// Envoy's checks.
    Grpc,
    /// Operators and monitoring.
    Admin,
    /// The management API.
    Management,
    /// Kubernetes' admission reviews.
    Webhook,
}

/// A connection after its handshake.
pub struct TlsStream {
    stream: server::TlsStream<TcpStream>,
    peer: PeerSlot,
}

/// The state of the files, for `/readyz`.
#[derive(Debug, Clone, serde::Serialize)]
pub struct TlsState {
    /// When the certificate in use expires.
    not_after: String,
    /// Why the files that are there now are not in use, or why peers are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl TlsListener {
    /// The label in metrics and logs.
    fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Admin => "admin",
            Self::Management => "management",
            Self::Webhook => "webhook",
        }
    }

    /// The label of unfinished handshakes in metrics.
    fn handshakes(self) -> &'static str {
        match self {
            Self::Grpc => "grpc_handshakes",
            Self::Admin => "admin_handshakes",
            Self::Management => "management_handshakes",
            Self::Webhook => "webhook_handshakes",
        }
    }

    /// The protocol (ALPN).
    fn protocol(self) -> &'static [u8] {
        match self {
            Self::Grpc => b"h2",
            Self::Admin | Self::Management | Self::Webhook => b"http/1.1",
        }
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Returns an error that names the flag and the file if they cannot be used.
    pub fn new(source: TlsSource, listener: TlsListener, metrics: &Metrics) -> anyhow::Result<Self> {
        source.warn_of_open_key();
        let material = Material::load(&source, listener.protocol())?;
        let handshakes = Connections::new(listener.handshakes(), HANDSHAKES, Duration::MAX, metrics);
        let metrics = match listener {
            TlsListener::Webhook => metrics.webhook_tls(),
            _ => metrics.tls(listener.name(), source.has_revocation_lists()),
        };
        material.report(&metrics);
        let tls = Self(Arc::new(Inner {
            source,
            current: RwLock::new(Arc::new(material)),
            problems: RwLock::default(),
            has_changed: AtomicBool::new(false),
            peers: Peers::default(),
            handshakes,
            refusals: RefusalLog::new(listener.name()),
            metrics,
        }));
        tls.examine(Vec::new());
        Ok(tls)
    }

    /// Completes the handshake of a connection. `None` if it fails, takes too long, or has to make room. The connection
    /// is closed once its client's certificate is no longer valid.
    pub async fn accept(&self, stream: TcpStream, slot: &Slot) -> Option<TlsStream> {
        let Inner { current, peers, handshakes, refusals, metrics, .. } = &*self.0;
        let address = stream.peer_addr();
        let material = Arc::clone(&*current.read());
        let unfinished = handshakes.open(address.as_ref().map(SocketAddr::ip).ok());
        let acceptor = TlsAcceptor::from(Arc::clone(&material.config));
        let accepted = acceptor.accept_with(stream, |session| session.set_buffer_limit(Some(UNSENT)));
        let accepted = timeout(HANDSHAKE_DEADLINE, accepted);
        let accepted = slot.connection().while_open(unfinished.connection().while_open(accepted)).await;
        drop(unfinished);
        let stream = match accepted.flatten() {
            Some(Ok(Ok(stream))) => stream,
            Some(Ok(Err(error))) => {
                metrics.handshakes.failed.increment(1);
                let address = address.map_or_else(|error| error.to_string(), |address| address.to_string());
                refusals.log(&address, &error, clock::monotonic());
                return None;
            }
            Some(Err(_)) => {
                metrics.handshakes.late.increment(1);
                return None;
            }
            None => {
                metrics.handshakes.no_room.increment(1);
                return None;
            }
        };
        metrics.handshakes.completed.increment(1);
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let peer = peers.open(chain, Arc::clone(slot.connection()));
        // The files may have changed since the handshake began.
        let latest = Arc::clone(&*current.read());
        if !Arc::ptr_eq(&latest, &material) && latest.verify(chain, clock::wall()).is_err() {
            return None;
        }
        Some(TlsStream { stream, peer })
    }

    /// Reads the files at intervals, and closes the connections whose certificate is no longer valid. Never returns.
    pub async fn watch(self, period: Duration) {
        let reload = async {
            let mut tick = interval(period);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                self.refresh().await;
            }
        };
        // On its own: a file system that does not answer must not keep connections open.
        let verify = async {
            let mut tick = interval(VERIFICATION_INTERVAL);
            loop {
                tick.tick().await;
                let has_changed = self.0.has_changed.swap(false, SeqCst);
                let (material, peers) = (Arc::clone(&*self.0.current.read()), self.0.peers.clone());
                let verified =
                    spawn_blocking(move || peers.verify(&material, has_changed, clock::wall())).await;
                if let Err(error) = verified {
                    warn!(%error, "the certificates of open connections could not be verified");
                    self.0.has_changed.store(true, SeqCst);
                }
            }
        };
        tokio::join!(reload, verify);
    }

    /// The state of the files.
    pub fn state(&self) -> TlsState {
        let not_after = self.0.current.read().not_after();
        let problems = self.0.problems.read();
        let problems: Vec<_> = problems.unused.iter().chain(&problems.used).map(String::as_str).collect();
        TlsState {
            not_after: not_after.format(&Rfc3339).unwrap_or_default(),
            problem: (!problems.is_empty()).then(|| problems.join("; ")),
        }
    }

    /// Uses the files that have changed, once they stay the same. Files that cannot be used are left: between two writes
    /// a certificate and its key may not match.
    async fn refresh(&self) {
        let Inner { source, current, has_changed, refusals, metrics, .. } = &*self.0;
        let Some(content) = self.read().await else { return };
        let before = Arc::clone(&*current.read());
        if before.is_made_of(&content) {
            return self.examine(Vec::new());
        }
        sleep(SETTLED).await;
        let Some(again) = self.read().await else { return };
        let Reload { material, problems } = before.reload(source, &content, &again, clock::wall());
        if let Some(material) = material {
            material.report(metrics);
            *current.write() = Arc::new(material);
            has_changed.store(true, SeqCst);
            info!(listener = refusals.listener, "TLS files reloaded");
        }
        if !problems.is_empty() {
            metrics.errors.increment(1);
        }
        self.examine(problems);
    }

    /// One read of the files, where it holds up nothing else.
    async fn read(&self) -> Option<Content> {
        let tls = self.clone();
        spawn_blocking(move || tls.0.source.read()).await.ok()
    }

    /// Notes, and logs if it has changed, what is wrong with the files.
    fn examine(&self, unused: Vec<String>) {
        let Inner { source, current, problems, refusals, .. } = &*self.0;
        let now = Problems { unused, used: current.read().problems(source, clock::wall()) };
        let mut problems = problems.write();
        if *problems == now {
            return;
        }
        let listener = refusals.listener;
        for problem in now.unused.iter().filter(|problem| !problems.unused.contains(problem)) {
            warn!(listener, problem, "a TLS file cannot be used; the one in use stays in use");
        }
        for problem in now.used.iter().filter(|problem| !problems.used.contains(problem)) {
            warn!(listener, problem, "TLS peers are refused, or refuse Keystile");
        }
        *problems = now;
    }
}

impl TlsStream {
    /// The names in the client's certificate. Empty without a certificate.
    pub fn client_names(&self) -> &[ClientName] {
        self.peer.names()
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
