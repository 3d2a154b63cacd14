//! The HTTP server for operators, with a limited number of connections and a limited time for idle ones.

use std::sync::Arc;

use axum::Router;
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tower_service::Service;
use tracing::{debug, warn};

use super::{ACCEPT_PAUSE, Connections, REQUEST_DEADLINE, Slot, is_exhausted};

/// Maximum size of the headers of one request, in bytes.
const MAX_HEAD: usize = 32 * 1024;

/// Serves `routes` over HTTP/1.1 for as long as the process lives.
pub async fn serve_http(listener: TcpListener, routes: Router, connections: Connections) {
    let accept = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(serve(stream, routes.clone(), connections.open()));
                }
                Err(error) if is_exhausted(&error) => {
                    warn!(%error, "a connection to the admin port could not be accepted");
                    connections.make_room();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Err(error) => debug!(%error, "a connection to the admin port broke at once"),
            }
        }
    };
    tokio::join!(accept, connections.clone().watch());
}

async fn serve(stream: TcpStream, routes: Router, slot: Slot) {
    let connection = Arc::clone(slot.connection());
    let service = service_fn(move |request: Request<Incoming>| {
        connection.called();
        routes.clone().call(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_DEADLINE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    if let Some(Err(error)) = slot.connection().while_open(served).await {
        debug!(%error, "a connection to the admin port broke");
    }
}
