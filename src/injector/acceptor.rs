//! Bounds the number of the webhook's connections.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::bounds::{Connections, Slot, State};

/// Accepts connections. At the bound, the oldest idle connection is closed. TLS and the rest belong to the inner acceptor.
#[derive(Clone)]
pub(super) struct BoundedAcceptor<A> {
    acceptor: A,
    connections: Connections,
}

/// A connection that fails once it has to make room for another.
pub(super) struct BoundedStream<T> {
    stream: T,
    slot: Slot,
}

impl<A> BoundedAcceptor<A> {
    pub(super) fn new(acceptor: A, connections: Connections) -> Self {
        Self { acceptor, connections }
    }
}

impl<I, S, A> Accept<I, S> for BoundedAcceptor<A>
where
    A: Accept<I, S, Future: Send + 'static>,
{
    type Stream = BoundedStream<A::Stream>;
    type Service = A::Service;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Self::Stream, Self::Service)>> + Send>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let slot = self.connections.open();
        let accepted = self.acceptor.accept(stream, service);
        Box::pin(async move {
            let accepted = slot.connection().while_open(accepted).await;
            let (stream, service) = accepted.unwrap_or_else(|| Err(made_room()))?;
            Ok((BoundedStream { stream, slot }, service))
        })
    }
}

impl<T> BoundedStream<T> {
    /// Fails once the connection has to make room. Its task is woken for that.
    fn is_open(&self, context: &mut Context<'_>) -> io::Result<()> {
        let connection = self.slot.connection();
        connection.register(context.waker());
        match connection.state() {
            State::Open => Ok(()),
            State::Closing | State::Cut => Err(made_room()),
        }
    }
}

fn made_room() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "it made room for another connection")
}

impl<T: AsyncRead + Unpin> AsyncRead for BoundedStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.is_open(context)?;
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            self.slot.connection().called();
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for BoundedStream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.is_open(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
