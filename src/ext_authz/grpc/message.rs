//! Receives the one message of a call, and no more of it than is needed.

use std::{
    future::poll_fn,
    pin::Pin,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body;
use tonic::Status;

use crate::{
    bounds::{self, Phase},
    clock,
};

mod buffer;

pub use buffer::MAX_MESSAGE_SIZE;
pub(crate) use buffer::Rejection;
use buffer::{MessageBuffer, Stop};

/// A message that was received whole.
#[derive(Debug)]
pub(crate) struct Message {
    /// Without its prefix.
    pub(crate) bytes: Bytes,
    /// How long it took to arrive.
    pub(crate) waited: Duration,
}

/// Why there is no message.
#[derive(Debug)]
pub(crate) enum ReceiveError<B> {
    /// A client may have caused it. The rest of the body is still to come.
    Rejected(Rejection, B),
    /// No client of Envoy's can cause it.
    Broken(Status),
}

/// Receives the message. `allowed` is how long the check may take. It is not called where the message is there with its
/// headers, as most are.
pub(crate) async fn receive<B>(
    mut body: B,
    headers: &HeaderMap,
    allowed: impl FnOnce() -> Duration,
) -> Result<Message, ReceiveError<B>>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
{
    let mut buffer = MessageBuffer::default();
    let at_once = poll_fn(|context| {
        loop {
            match Pin::new(&mut body).poll_frame(context) {
                Poll::Ready(Some(frame)) => {
                    if let Err(stop) = buffer.push(frame) {
                        return Poll::Ready(Some(Err(stop)));
                    }
                }
                Poll::Ready(None) => return Poll::Ready(Some(Ok(()))),
                Poll::Pending => return Poll::Ready(None),
            }
        }
    });
    let (ended, waited) = match at_once.await {
        Some(ended) => (ended, Duration::ZERO),
        None => {
            let begun = clock::monotonic();
            let ended = Box::pin(rest(&mut body, &mut buffer, headers, begun + allowed())).await;
            (ended, begun.elapsed())
        }
    };
    match ended.and_then(|()| buffer.finish()) {
        Ok(bytes) => Ok(Message { bytes, waited }),
        Err(Stop::Rejected(rejection)) => Err(ReceiveError::Rejected(rejection, body)),
        Err(Stop::Broken(status)) => Err(ReceiveError::Broken(status)),
    }
}

/// The memory that headers take, in bytes: they are decoded into buffers that double as they grow.
pub(crate) fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| 2 * (name.as_str().len() + value.len()) + 64).sum()
}

/// Receives a message to its end that did not arrive at once.
async fn rest<B>(
    body: &mut B,
    buffer: &mut MessageBuffer,
    headers: &HeaderMap,
    deadline: Instant,
) -> Result<(), Stop>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
{
    let headers = size(headers);
    buffer.copy_first();
    let frames = async {
        loop {
            let held = headers + buffer.capacity();
            bounds::hold(held, Phase::Receiving)?;
            let frame = poll_fn(|context| {
                bounds::wait(Pin::new(&mut *body).poll_frame(context), Phase::Receiving, || held)
            });
            match frame.await? {
                Some(frame) => buffer.push(frame)?,
                None => return Ok(()),
            }
        }
    };
    let late = Err(Stop::Rejected(Rejection::Late));
    tokio::time::timeout_at(deadline.into(), frames).await.unwrap_or(late)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body::Frame;
    use http_body_util::StreamBody;
    use proptest::prelude::*;
    use tonic::Code;

    use super::*;
    use crate::ext_authz::grpc::frame::{PREFIX, framed};

    /// The message, or why there is none.
    async fn receive_from(parts: &[&[u8]]) -> Result<Bytes, Result<Rejection, Code>> {
        let frames: Vec<_> =
            parts.iter().map(|part| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(part)))).collect();
        let body = StreamBody::new(tokio_stream::iter(frames));
        match receive(body, &HeaderMap::new(), || Duration::from_secs(1)).await {
            Ok(message) => Ok(message.bytes),
            Err(ReceiveError::Rejected(rejection, _)) => Err(Ok(rejection)),
            Err(ReceiveError::Broken(status)) => Err(Err(status.code())),
        }
    }

    #[tokio::test]
    async fn call_without_exactly_one_message_is_refused() {
        for (bytes, code) in [
            (&b""[..], Code::Internal),
            (&[0, 0, 0, 0], Code::Internal),
            (&[0, 0, 0, 0, 2, 7], Code::Internal),
            (&[0, 0, 0, 0, 0, 7], Code::Internal),
            (&[1, 0, 0, 0, 0], Code::Unimplemented),
        ] {
            assert_eq!(receive_from(&[bytes]).await, Err(Err(code)), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn message_that_is_too_large_is_rejected_by_its_prefix() {
        for prefix in [[0, 0xff, 0xff, 0xff, 0xff], [0, 1, 0, 0, 1]] {
            assert_eq!(receive_from(&[&prefix[..3], &prefix[3..]]).await, Err(Ok(Rejection::TooLarge)));
        }
        let most = framed(MAX_MESSAGE_SIZE, |into| into.resize(PREFIX + MAX_MESSAGE_SIZE, 7));
        let parts: Vec<_> = most.chunks(16 * 1024).collect();
        assert_eq!(receive_from(&parts).await.map(|message| message.len()), Ok(MAX_MESSAGE_SIZE));
    }

    #[tokio::test]
    async fn message_that_does_not_arrive_is_late() {
        let frames = tokio_stream::once(Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[0, 0, 0]))));
        let body = StreamBody::new(Box::pin(futures_util::stream::StreamExt::chain(
            frames,
            futures_util::stream::pending(),
        )));
        let received = receive(body, &HeaderMap::new(), || Duration::from_millis(20)).await;
        assert!(matches!(received, Err(ReceiveError::Rejected(Rejection::Late, _))), "late");
    }

    proptest! {
        #[test]
        fn message_is_received_in_any_number_of_pieces(
            content in proptest::collection::vec(any::<u8>(), 0..300),
            cuts in proptest::collection::vec(0..305_usize, 0..8),
        ) {
            let whole = framed(content.len(), |into| into.extend_from_slice(&content));
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(whole.len())).collect();
            cuts.extend([0, whole.len()]);
            cuts.sort_unstable();
            let parts: Vec<_> = cuts.windows(2).map(|cut| &whole[cut[0]..cut[1]]).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("builds");
            let received = runtime.block_on(receive_from(&parts));
            prop_assert_eq!(received, Ok(Bytes::from(content)));
        }
    }
}
