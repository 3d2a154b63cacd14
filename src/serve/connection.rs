//! One connection of Envoy's: HTTP/2, with checks answered by hand and everything else by tonic.

use std::{convert::Infallible, io, pin::Pin, task::Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Either;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulConnection,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::service::Routes;
use tower_service::Service;

use super::{Checks, calls::Calls};
use crate::ext_authz::CHECK_PATH;

/// Streams that one connection may have open: Envoy opens one connection per worker.
const MAX_STREAMS: u32 = 8192;

/// What a connection and a stream may send ahead: bodies of requests come along with checks.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
const STREAM_WINDOW: u32 = 1024 * 1024;

/// How long a connection may be silent before it is asked whether it is still there, and how long it has to say so.
const KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(30);

/// Serves a connection to its end.
pub(super) fn serve<T>(
    stream: T,
    checks: Checks,
    routes: Routes,
    calls: Calls,
) -> impl GracefulConnection<Error = hyper::Error> + Send
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let (checks, mut routes) = (checks.clone(), routes.clone());
        async move {
            if request.uri().path() == CHECK_PATH {
                return Ok::<_, Infallible>(checks.call(request).await.map(Either::Left));
            }
            Ok(other(&mut routes, request).await.map(Either::Right))
        }
    });
    http2::Builder::new(calls)
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .serve_connection(TokioIo::new(Copying(stream)), service)
}

/// Health and reflection.
async fn other(
    routes: &mut Routes,
    request: Request<Incoming>,
) -> Response<impl Body<Data = Bytes, Error = tonic::Status> + Send + use<>> {
    match routes.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// A stream that takes one buffer at a time. HTTP/2 then copies small frames together, and an answer leaves by
/// one system call instead of two.
struct Copying<T>(T);

impl<T: AsyncRead + Unpin> AsyncRead for Copying<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Copying<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        false
    }
}
