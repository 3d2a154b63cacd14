//! The listeners that Envoy connects to: TCP addresses and Unix sockets.

use std::{
    fs::Permissions,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::{debug, warn};

use super::connection::{self, CheckService};
use crate::{
    bounds::{self, Connections, InFlight},
    config::Listen,
    tcp_listener,
    tls::Tls,
};

/// A bound address.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// The file of a Unix socket. It is removed when the listener is dropped.
pub(super) struct SocketFile(PathBuf);

impl Listener {
    /// Binds the address, one of `all_tcp` or a Unix socket. A Unix socket gets `mode` as its permissions.
    pub(super) async fn bind(address: &Listen, mode: u32, all_tcp: &[SocketAddr]) -> io::Result<Self> {
        match address {
            Listen::Tcp(address) => Ok(Self::Tcp(tcp_listener::bind_one_of(*address, all_tcp).await?)),
            Listen::Unix(path) => {
                clear(path).await?;
                let listener = UnixListener::bind(path)?;
                let file = SocketFile(path.clone());
                std::fs::set_permissions(path, Permissions::from_mode(mode))?;
                Ok(Self::Unix(listener, file))
            }
        }
    }

    /// The bound address. If port 0 was configured, it has the actual port.
    pub(super) fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map_or_else(|error| error.to_string(), |a| a.to_string())
            }
            Self::Unix(_, SocketFile(path)) => format!("unix:{}", path.display()),
        }
    }

    /// Serves until `stop`. Then it stops listening and lets the calls in progress end.
    pub(super) async fn serve(
        self,
        checks: CheckService,
        routes: Routes,
        connections: Connections,
        in_flight: InFlight,
        tls: Option<Tls>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let slot = |address| (connections.open(address), in_flight.clone());
        while let Some(accepted) = stop.run_until_cancelled(self.accept()).await {
            match accepted {
                Ok(IncomingStream::Tcp(stream, address)) => {
                    let (slot, in_flight) = slot(Some(address));
                    let (checks, routes) = (checks.clone(), routes.clone());
                    let Some(tls) = tls.clone() else {
                        tokio::spawn(connection::serve(stream, checks, routes, slot, in_flight));
                        continue;
                    };
                    tokio::spawn(async move {
                        if let Some(stream) = tls.accept(stream, &slot).await {
                            connection::serve(stream, checks, routes, slot, in_flight).await;
                        }
                    });
                }
                Ok(IncomingStream::Unix(stream)) => {
                    let (slot, in_flight) = slot(None);
                    tokio::spawn(connection::serve(stream, checks.clone(), routes.clone(), slot, in_flight));
                }
                Err(error) if bounds::is_exhausted(&error) => {
                    warn!(%error, address = self.address(), "a connection could not be accepted");
                    connections.make_room();
                    tokio::time::sleep(bounds::ACCEPT_PAUSE).await;
                }
                Err(error) => debug!(%error, "a connection failed before it was served"),
            }
        }
        // New connections are refused from now on, so that clients try another instance at once.
        drop(self);
        connections.drain().await;
        Ok(())
    }

    async fn accept(&self) -> io::Result<IncomingStream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(IncomingStream::Tcp(stream, address.ip()))
            }
            Self::Unix(listener, _) => Ok(IncomingStream::Unix(listener.accept().await?.0)),
        }
    }
}

/// A connection of either kind.
enum IncomingStream {
    Tcp(TcpStream, IpAddr),
    Unix(UnixStream),
}

/// Removes a socket file that a dead process left behind. Does not remove anything else.
async fn clear(path: &Path) -> io::Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "the path exists and is not a socket"));
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "a live process listens on this socket")),
        Err(error) => Err(error),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The file may be removed already, or this process may no longer be allowed to remove it. Neither needs
        // handling.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn live_socket_is_refused_and_a_dead_one_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("k.sock");
        let address = Listen::Unix(path.clone());
        let first = Listener::bind(&address, 0o600, &[]).await.expect("binds");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let second = Listener::bind(&address, 0o600, &[]).await.err().expect("refused");
        assert_eq!(second.kind(), ErrorKind::AddrInUse);
        drop(first);
        assert!(!path.exists(), "removed with its listener");
        // A killed process leaves a socket file without a listener.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
        assert!(path.exists());
        Listener::bind(&address, 0o600, &[]).await.expect("replaced");
    }

    #[tokio::test]
    async fn file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("precious");
        std::fs::write(&path, "data").expect("written");
        Listener::bind(&Listen::Unix(path.clone()), 0o600, &[]).await.err().expect("refused");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "data");
    }
}
