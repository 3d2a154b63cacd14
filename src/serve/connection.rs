//! One connection from Envoy, over HTTP/2. Keystile's own code answers checks; tonic answers everything else.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use http::Request;
use http_body_util::Either;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tonic::service::Routes;
use tracing::debug;

use super::{calls::Calls, other, stream::Polite};
use crate::{
    bounds::{InFlight, Slot},
    ext_authz::{CHECK_PATH, EncodedRecord, ExtAuthz},
    limiter::Limiter,
    store::{LowerTier, Memory},
};

/// The service that answers checks.
pub(super) type CheckService = ExtAuthz<Memory<LowerTier, EncodedRecord>, Limiter>;

/// Maximum number of open streams per connection. Envoy has one connection per worker. By default it allows at most
/// 1024 requests in progress to a cluster; above that it opens another connection.
const MAX_STREAMS: u32 = 1024;

/// How many bytes a connection and a stream may send before they are read: request bodies come with checks. Unread
/// bytes are held in memory, for each connection.
const CONNECTION_WINDOW: u32 = 512 * 1024;
const STREAM_WINDOW: u32 = 256 * 1024;

/// Maximum size of the headers of one call, in bytes. It is more than Envoy accepts from a client by default (60 KiB),
/// because some headers, such as `tracestate`, arrive as the client sent them. A call with larger headers fails, and a
/// failure mode would let the request through.
const MAX_HEADERS: u32 = 128 * 1024;

/// How long a connection may be silent before it gets a ping, and how long it has to answer the ping. While headers or
/// a frame are in transit it cannot answer, so the sum of the two is their deadline.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// How long a new connection has to send the HTTP/2 preface.
const PREFACE_DEADLINE: Duration = Duration::from_secs(5);

/// The HTTP/2 preface (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection until it ends.
pub(super) async fn serve<T>(
    mut stream: T,
    checks: CheckService,
    routes: Routes,
    slot: Slot,
    in_flight: InFlight,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let begun = tokio::time::timeout(PREFACE_DEADLINE, preface(&mut stream));
    match slot.connection().while_open(begun).await {
        Some(Ok(Ok(()))) => {}
        None => return,
        Some(_) => return slot.without_preface(),
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let (checks, routes) = (checks.clone(), routes.clone());
        async move {
            if request.uri().path() == CHECK_PATH {
                return Ok::<_, Infallible>(checks.call(request).await.map(Either::Left));
            }
            Ok(other::call(routes, request).await.map(Either::Right))
        }
    });
    let calls = Calls::default();
    let stream = Polite::new(stream, PREFACE, Arc::clone(slot.connection()));
    let connection = http2::Builder::new(calls.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        // Envoy may cancel many calls at once because this process was paused for a moment. That is not an attack.
        .max_pending_accept_reset_streams(MAX_STREAMS as usize)
        .max_header_list_size(MAX_HEADERS)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .serve_connection(TokioIo::new(stream), service);
    match calls.drive(connection, http2::Connection::graceful_shutdown, slot, in_flight).await {
        Some(Err(error)) => debug!(%error, "a connection failed"),
        Some(Ok(())) => {}
        None => debug!("a connection was cut"),
    }
}

/// Reads the HTTP/2 preface.
async fn preface(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut left = PREFACE;
    let mut buffer = [0; PREFACE.len()];
    while !left.is_empty() {
        let read = stream.read(&mut buffer[..left.len()]).await?;
        if read == 0 || buffer[..read] != left[..read] {
            return Err(io::ErrorKind::InvalidData.into());
        }
        left = &left[read..];
    }
    Ok(())
}
