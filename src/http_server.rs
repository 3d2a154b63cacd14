//! The HTTP server of operators, of the management API and of the webhook: HTTP/1.1, with or without TLS, with a limited
//! number of connections and a limited time for idle ones.

use std::{future::poll_fn, io, net::IpAddr, pin::pin, sync::Arc, task::Poll, time::Duration};

use axum::Router;
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tower_service::Service;
use tracing::{debug, warn};

use crate::{
    bounds::{ACCEPT_PAUSE, Connections, REQUEST_DEADLINE, Slot, State, is_exhausted},
    config::ClientName,
    tls::Tls,
};

/// Maximum size of the headers of one request, in bytes.
const MAX_HEAD: usize = 32 * 1024;

/// A listener and what it serves.
pub struct HttpServer {
    /// The listener.
    pub listener: TcpListener,
    /// The routes. They find a [`Client`] in the extensions of each request.
    pub routes: Router,
    /// The connections, watched by this server.
    pub connections: Connections,
    /// TLS, watched by the caller.
    pub tls: Option<Tls>,
    /// How long a connection may be idle between two requests.
    pub keep_alive: Duration,
}

/// Who sent a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// The address of the connection.
    pub address: IpAddr,
    /// The names in the client's certificate. Empty without a verified certificate.
    pub names: Arc<[ClientName]>,
}

impl HttpServer {
    /// Serves until `stop`. Then it stops listening and lets requests in progress end.
    pub async fn run(self, stop: CancellationToken) {
        let watch = tokio::spawn(self.connections.clone().watch());
        while let Some(accepted) = stop.run_until_cancelled(self.listener.accept()).await {
            match accepted {
                Ok((stream, address)) => {
                    tokio::spawn(self.serve(stream, address.ip()));
                }
                Err(error) if is_exhausted(&error) => {
                    warn!(%error, "a connection could not be accepted");
                    self.connections.make_room();
                    sleep(ACCEPT_PAUSE).await;
                }
                Err(error) => debug!(%error, "a connection failed before it was served"),
            }
        }
        let Self { listener, connections, .. } = self;
        // New connections are refused from now on, so that clients try another instance at once.
        drop(listener);
        connections.drain().await;
        watch.abort();
    }

    fn serve(&self, stream: TcpStream, address: IpAddr) -> impl Future<Output = ()> + Send + use<> {
        let (slot, routes, tls, keep_alive) =
            (self.connections.open(Some(address)), self.routes.clone(), self.tls.clone(), self.keep_alive);
        async move {
            let Some(tls) = tls else {
                let client = Client { address: address.to_canonical(), names: [].into() };
                return serve(stream, client, routes, slot, keep_alive).await;
            };
            if let Some(stream) = tls.accept(stream, &slot).await {
                let client = Client { address: address.to_canonical(), names: stream.client_names().into() };
                serve(stream, client, routes, slot, keep_alive).await;
            }
        }
    }
}

async fn serve<S>(stream: S, client: Client, routes: Router, slot: Slot, keep_alive: Duration)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = Arc::clone(slot.connection());
    let service = service_fn(move |mut request: Request<Incoming>| {
        let call = connection.begin_call();
        request.extensions_mut().insert(client.clone());
        let answer = routes.clone().call(request);
        async move {
            let answer = answer.await;
            drop(call);
            answer
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(keep_alive)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let connection = slot.connection();
    let (mut served, mut first_request) = (pin!(served), pin!(sleep(REQUEST_DEADLINE)));
    let (mut is_closing, mut is_first) = (false, true);
    let ended = poll_fn(|context| {
        connection.register(context.waker());
        match connection.state() {
            State::Open => {}
            State::Closing if is_closing => {}
            State::Closing => {
                is_closing = true;
                served.as_mut().graceful_shutdown();
            }
            State::Cut => return Poll::Ready(Ok(())),
        }
        let state = served.as_mut().poll(context).map_err(io::Error::other);
        is_first = is_first && !connection.has_called();
        if state.is_pending() && is_first && first_request.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        state
    });
    if let Err(error) = ended.await {
        debug!(%error, "a connection failed");
    }
}
