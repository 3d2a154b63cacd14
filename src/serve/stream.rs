//! The byte stream of a connection, read only as fast as the peer reads the answers.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::bounds::Connection;

/// A stream that is not read while its writes are blocked. A peer that does not read gets no further answers, so it
/// cannot make answers pile up in memory.
///
/// It accepts one buffer per write. The HTTP/2 library then copies small frames into one buffer, and an answer takes
/// one system call instead of two.
pub(super) struct Polite<T> {
    stream: T,
    /// Bytes that were read earlier, to detect the protocol.
    begin: &'static [u8],
    connection: Arc<Connection>,
    is_blocked: bool,
    /// Whether a read was postponed.
    is_waiting: bool,
}

impl<T> Polite<T> {
    /// Wraps a stream from which `begin` was already read.
    pub(super) fn new(stream: T, begin: &'static [u8], connection: Arc<Connection>) -> Self {
        Self { stream, begin, connection, is_blocked: false, is_waiting: false }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Polite<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_blocked {
            // A write that succeeds wakes the task.
            self.is_waiting = true;
            return Poll::Pending;
        }
        if !self.begin.is_empty() {
            let (now, later) = self.begin.split_at(self.begin.len().min(buffer.remaining()));
            buffer.put_slice(now);
            self.begin = later;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Polite<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if written.is_pending() != self.is_blocked {
            self.is_blocked = written.is_pending();
            self.connection.is_blocked(self.is_blocked);
        }
        if !self.is_blocked && std::mem::take(&mut self.is_waiting) {
            context.waker().wake_by_ref();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        false
    }
}
