//! Where Envoy connects: a TCP address or a Unix socket.

use std::{
    fs::Permissions,
    io::{self, ErrorKind},
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Router, TcpIncoming};

use crate::config::Listen;

/// A bound address.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// The file of a Unix socket, removed when the listener is gone.
pub(super) struct SocketFile(PathBuf);

impl Listener {
    /// Binds; a Unix socket gets `mode` as its permissions.
    pub(super) async fn bind(address: &Listen, mode: u32) -> io::Result<Self> {
        match address {
            Listen::Tcp(address) => Ok(Self::Tcp(TcpListener::bind(address).await?)),
            Listen::Unix(path) => {
                clear(path).await?;
                let listener = UnixListener::bind(path)?;
                let file = SocketFile(path.clone());
                std::fs::set_permissions(path, Permissions::from_mode(mode))?;
                Ok(Self::Unix(listener, file))
            }
        }
    }

    /// The address in effect: the port is the real one where port 0 was asked for.
    pub(super) fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map_or_else(|error| error.to_string(), |a| a.to_string())
            }
            Self::Unix(_, SocketFile(path)) => format!("unix:{}", path.display()),
        }
    }

    /// Serves until `stop`, then lets the calls under way end.
    pub(super) async fn serve(self, router: Router, stop: CancellationToken) -> anyhow::Result<()> {
        let stopped = stop.cancelled_owned();
        match self {
            Self::Tcp(listener) => {
                let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                router.serve_with_incoming_shutdown(incoming, stopped).await?;
            }
            Self::Unix(listener, _file) => {
                router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), stopped).await?;
            }
        }
        Ok(())
    }
}

/// Removes the socket that a process which is gone left behind; leaves everything else alone.
async fn clear(path: &Path) -> io::Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "the path exists and is no socket"));
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "a live process listens on this socket")),
        Err(error) => Err(error),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Gone already, or not ours to remove any more: nothing to do about either.
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
        let first = Listener::bind(&address, 0o600).await.expect("binds");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let second = Listener::bind(&address, 0o600).await.err().expect("refused");
        assert_eq!(second.kind(), ErrorKind::AddrInUse);
        drop(first);
        assert!(!path.exists(), "removed with its listener");
        // What a killed process leaves: a socket file that nobody listens on.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
        assert!(path.exists());
        Listener::bind(&address, 0o600).await.expect("replaced");
    }

    #[tokio::test]
    async fn file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("precious");
        std::fs::write(&path, "data").expect("written");
        Listener::bind(&Listen::Unix(path.clone()), 0o600).await.err().expect("refused");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "data");
    }
}
