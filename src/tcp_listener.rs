//! Listeners on TCP. `[::]` is every address of the machine, of IPv6 and of IPv4, whatever the system's default is.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use rustix::{io::Errno, net::sockopt::set_ipv6_v6only};
use tokio::net::{TcpListener, TcpSocket};
use tracing::warn;

/// Connections that wait to be accepted. tokio has the same number.
const BACKLOG: u32 = 1024;

/// Binds an address. Where the kernel has no IPv6, `[::]` is every address of IPv4.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    bind_one_of(address, &[]).await
}

/// Binds an address of a list. If the list has `0.0.0.0` with the same port, `[::]` is every address of IPv6 only.
pub(crate) async fn bind_one_of(address: SocketAddr, list: &[SocketAddr]) -> io::Result<TcpListener> {
    let is_wildcard = address.is_ipv6() && address.ip().is_unspecified();
    if !is_wildcard {
        return TcpListener::bind(address).await;
    }
    let all_of_ipv4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    match bind_wildcard(address, list.contains(&all_of_ipv4)) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT) => {
            warn!(%address, instead = %all_of_ipv4, "this machine has no IPv6");
            TcpListener::bind(all_of_ipv4).await
        }
        bound => bound,
    }
}

fn bind_wildcard(address: SocketAddr, is_ipv6_only: bool) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    // As tokio does: connections of a process that has just ended do not keep the port.
    socket.set_reuseaddr(true)?;
    set_ipv6_v6only(&socket, is_ipv6_only)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Where a listener of this machine is reached from this machine, in the order in which to try.
pub(crate) fn reached_at(address: SocketAddr) -> Vec<SocketAddr> {
    let localhost = SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()));
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![localhost],
        // A container may have no loopback address of IPv6.
        IpAddr::V6(ip) if ip.is_unspecified() => {
            vec![([0, 0, 0, 0, 0, 0, 0, 1], address.port()).into(), localhost]
        }
        _ => vec![address],
    }
}
