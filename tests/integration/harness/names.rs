//! Host names whose addresses a test decides on, and servers that do not answer.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use keystile::addresses::{Addresses, Resolver};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// A name service in which every name has the same addresses.
#[derive(Default)]
pub struct Names(Mutex<Vec<SocketAddr>>);

impl Names {
    pub fn new(addresses: &[SocketAddr]) -> Arc<Self> {
        Arc::new(Self(Mutex::new(addresses.to_vec())))
    }

    /// From now on names lead here.
    pub fn set(&self, addresses: &[SocketAddr]) {
        *self.0.lock().unwrap() = addresses.to_vec();
    }
}

impl Resolver for Names {
    fn addresses<'a>(&'a self, _: &'a str, _: u16) -> Addresses<'a> {
        let addresses = self.0.lock().unwrap().clone();
        Box::pin(async move {
            if addresses.is_empty() { Err(io::Error::other("no such name")) } else { Ok(addresses) }
        })
    }
}

/// An address at which connections are neither accepted nor refused, as at one whose machine is off.
pub struct BlackHole {
    pub address: SocketAddr,
    _listener: tokio::net::TcpListener,
    _waiting: Vec<TcpStream>,
}

impl BlackHole {
    pub async fn open() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        // Once those that may wait to be accepted do, the kernel answers nobody.
        while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
            waiting.push(stream.unwrap());
            assert!(waiting.len() < 1000, "the queue never fills");
        }
        Self { address, _listener: listener, _waiting: waiting }
    }
}
