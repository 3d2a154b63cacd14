//! One connection of Envoy's: HTTP/2, with checks answered by hand and everything else by tonic.

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

/// Streams that one connection may have open. Envoy has one connection per worker, and by default lets no more than
/// 1024 requests to a cluster be under way; past that it opens another connection.
const MAX_STREAMS: u32 = 1024;

/// What a connection and a stream may send ahead: bodies of requests come along with checks. What is not taken up
/// yet is held here, for each connection.
const CONNECTION_WINDOW: u32 = 512 * 1024;
const STREAM_WINDOW: u32 = 256 * 1024;

/// Headers of one call: more than Envoy takes from a client by default (60 KiB), since some of them, such as
/// `tracestate`, are as the client sent them. A call whose headers are larger fails, and failure modes let it through.
const MAX_HEADERS: u32 = 128 * 1024;

/// How long a connection may be silent before it is asked whether it is still there, and how long it has to say so.
/// While headers or a frame are on their way it cannot answer, so the two together are their deadline.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// How long a connection has to begin as HTTP/2 does.
const PREFACE_DEADLINE: Duration = Duration::from_secs(5);

/// What it begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection to its end.
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
        // An Envoy that gives up on many calls at once, because this process was stopped for a moment, is no attacker.
        .max_pending_accept_reset_streams(MAX_STREAMS as usize)
        .max_header_list_size(MAX_HEADERS)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .serve_connection(TokioIo::new(stream), service);
    match calls.drive(connection, http2::Connection::graceful_shutdown, slot, in_flight).await {
        Some(Err(error)) => debug!(%error, "a connection broke"),
        Some(Ok(())) => {}
        None => debug!("a connection was cut"),
    }
}

/// Reads what an HTTP/2 connection begins with.
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
