//! A wire that can be cut, held and slowed: forwards TCP connections until told otherwise.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::AbortHandle,
};

/// Stands between Keystile and a server.
pub struct Proxy {
    pub address: SocketAddr,
    wire: watch::Sender<Wire>,
    route: watch::Sender<Route>,
    task: AbortHandle,
}

/// Where connections lead.
#[derive(Debug, Clone, Copy)]
struct Route {
    server: SocketAddr,
    /// Connections of an earlier one break.
    generation: u32,
}

/// What becomes of what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// It arrives.
    Whole,
    /// Every connection breaks, and each new one at once.
    Cut,
    /// Every connection breaks, and new ones are refused.
    Refusing,
    /// Nothing arrives, and nothing breaks.
    Hanging,
    /// Answers arrive this much later.
    Slow(Duration),
}

impl Proxy {
    pub async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (wire, seen) = watch::channel(Wire::Whole);
        let (route, routes) = watch::channel(Route { server, generation: 0 });
        let task = tokio::spawn(accept(listener, routes, seen));
        Self { address, wire, route, task: task.abort_handle() }
    }

    /// Leads to another server: connections break, and new ones go there.
    pub fn lead_to(&self, server: SocketAddr) {
        self.route.send_modify(|route| *route = Route { server, generation: route.generation + 1 });
    }

    /// New connections go to another server; the others stay where they are.
    pub fn lead_new_to(&self, server: SocketAddr) {
        self.route.send_modify(|route| route.server = server);
    }

    pub fn set(&self, wire: Wire) {
        self.wire.send_replace(wire);
    }

    pub fn cut(&self) {
        self.set(Wire::Cut);
    }

    pub fn mend(&self) {
        self.set(Wire::Whole);
    }

    /// The URL of the server, by way of this.
    pub fn url(&self, url: &str, server: SocketAddr) -> String {
        let by_way = url.replace(&server.to_string(), &self.address.to_string());
        assert_ne!(by_way, url, "the URL does not name {server}");
        by_way
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, routes: watch::Receiver<Route>, wire: watch::Receiver<Wire>) {
    let address = listener.local_addr().unwrap();
    let mut listener = Some(listener);
    let mut seen = wire.clone();
    loop {
        if *seen.borrow_and_update() == Wire::Refusing {
            listener = None;
        } else if listener.is_none() {
            listener = Some(TcpListener::bind(address).await.unwrap());
        }
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok((client, _)) = accepted => drop(tokio::spawn(forward(client, routes.clone(), wire.clone()))),
            changed = seen.changed() => if changed.is_err() { return },
        }
    }
}

async fn forward(client: TcpStream, mut routes: watch::Receiver<Route>, mut wire: watch::Receiver<Wire>) {
    let broken = |wire: &Wire| matches!(wire, Wire::Cut | Wire::Refusing);
    if broken(&wire.borrow()) {
        return;
    }
    let route = *routes.borrow();
    let Ok(server) = TcpStream::connect(route.server).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        () = copy(from_client, to_server, wire.clone(), false) => {}
        () = copy(from_server, to_client, wire.clone(), true) => {}
        _ = wire.wait_for(broken) => {}
        _ = routes.wait_for(|now| now.generation != route.generation) => {}
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut wire: watch::Receiver<Wire>,
    answers: bool,
) {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let Ok(count @ 1..) = from.read(&mut bytes).await else { return };
        let Ok(wire) = wire.wait_for(|wire| *wire != Wire::Hanging).await.map(|wire| *wire) else { return };
        if let (Wire::Slow(delay), true) = (wire, answers) {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
