//! TLS of the listeners: files that are read again when they change, and clients that are known by their certificates.
//!
//! Sessions are not resumed: a resumed session would skip the verification of the client's certificate.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::RwLock;
use time::format_description::well_known::Rfc3339;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{interval, timeout},
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
mod client_verifier;
mod material;
mod peers;
mod private_key;
mod refusals;

pub use material::{Pem, TlsSource};

use material::Material;
use peers::{PeerSlot, Peers};
use refusals::RefusalLog;

/// Interval at which the files are read.
pub const INTERVAL: Duration = Duration::from_secs(2);

/// Deadline of a handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// Maximum number of unfinished handshakes. Above it, the oldest ends. Each may hold some 64 KiB.
const HANDSHAKES: usize = 256;

/// Bytes that a connection may hold encrypted and unsent: one record.
const UNSENT: usize = 16 * 1024;

/// TLS of one listener, or of several together. Cheap to clone.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    source: TlsSource,
    current: RwLock<Arc<Material>>,
    /// Why the files that are there now are not in use.
    problem: RwLock<Option<String>>,
    peers: Peers,
    handshakes: Connections,
    refusals: RefusalLog,
    metrics: TlsMetrics,
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
    /// Why the files that are there now are not in use.
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
        let now = clock::wall();
        if let Some(problem) = material.validity_problem(now) {
            warn!(listener = listener.name(), problem, "clients will refuse the certificate");
        }
        let handshakes = Connections::new(listener.handshakes(), HANDSHAKES, Duration::MAX, metrics);
        let metrics = match listener {
            TlsListener::Webhook => metrics.webhook_tls(),
            _ => metrics.tls(listener.name(), source.has_revocation_lists()),
        };
        material.report(&metrics);
        Ok(Self(Arc::new(Inner {
            source,
            current: RwLock::new(Arc::new(material)),
            problem: RwLock::default(),
            peers: Peers::default(),
            handshakes,
            refusals: RefusalLog::new(listener.name()),
            metrics,
        })))
    }

    /// Completes the handshake of a connection. `None` if it fails, takes too long, or has to make room. The connection
    /// is closed once its client's certificate is no longer valid.
    pub async fn accept(&self, stream: TcpStream, slot: &Slot) -> Option<TlsStream> {
        let Inner { current, peers, handshakes, refusals, metrics, .. } = &*self.0;
        let address = stream.peer_addr();
        let address = || address.as_ref().map_or_else(ToString::to_string, ToString::to_string);
        let material = Arc::clone(&*current.read());
        let unfinished = handshakes.open();
        let acceptor = TlsAcceptor::from(Arc::clone(&material.config));
        let accepted = acceptor.accept_with(stream, |session| session.set_buffer_limit(Some(UNSENT)));
        let accepted = timeout(HANDSHAKE_DEADLINE, accepted);
        let accepted = slot.connection().while_open(unfinished.connection().while_open(accepted)).await;
        drop(unfinished);
        let stream = match accepted.flatten() {
            Some(Ok(Ok(stream))) => stream,
            Some(Ok(Err(error))) => {
                metrics.handshakes.failed.increment(1);
                refusals.log(&address(), &error, clock::monotonic());
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
        let mut tick = interval(period);
        loop {
            tick.tick().await;
            let has_changed = self.refresh();
            let material = Arc::clone(&*self.0.current.read());
            self.0.peers.verify(&material, has_changed, clock::wall());
        }
    }

    /// The state of the files.
    pub fn state(&self) -> TlsState {
        let not_after = self.0.current.read().not_after;
        TlsState {
            not_after: not_after.format(&Rfc3339).unwrap_or_default(),
            problem: self.0.problem.read().clone(),
        }
    }

    /// Uses the files if they have changed. Returns whether they have. Files that cannot be used are left: between two
    /// writes a certificate and its key may not match.
    fn refresh(&self) -> bool {
        let Inner { source, current, problem, refusals, metrics, .. } = &*self.0;
        let before = Arc::clone(&*current.read());
        match before.reload(source, clock::wall()) {
            Ok(None) => {
                *problem.write() = None;
                false
            }
            Ok(Some(material)) => {
                material.report(metrics);
                *current.write() = Arc::new(material);
                *problem.write() = None;
                info!(listener = refusals.listener, "TLS files reloaded");
                true
            }
            Err(error) => {
                metrics.errors.increment(1);
                let error = format!("{error:#}");
                if problem.read().as_ref() != Some(&error) {
                    warn!(
                        listener = refusals.listener,
                        error, "the TLS files cannot be reloaded; those in use stay in use"
                    );
                    *problem.write() = Some(error);
                }
                false
            }
        }
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
