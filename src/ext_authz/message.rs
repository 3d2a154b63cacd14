//! The one message of a call, received no further than it has to be.

use std::{
    future::poll_fn,
    pin::Pin,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use tonic::Status;

use super::MAX_MESSAGE_SIZE;
use crate::bounds::{self, NoRoom, Phase};

use crate::clock;

/// Before each message: whether it is compressed, and its length.
pub(super) const PREFIX: usize = 5;

/// A message that came whole.
#[derive(Debug)]
pub(super) struct Received {
    /// Without its prefix.
    pub(super) bytes: Bytes,
    /// How long it was waited for.
    pub(super) waited: Duration,
}

/// Why there is no message.
#[derive(Debug)]
pub(super) enum Unread<B> {
    /// What a client may have brought about; the rest of the body is still to come.
    Denied(Refusal, B),
    /// No client of Envoy's can.
    Broken(Status),
}

/// Why a message is not received to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is larger than any that is read.
    TooLarge,
    /// It has to make room.
    NoRoom,
    /// The check's deadline has passed.
    Late,
}

/// Why no further frame is read.
enum Stop {
    Refused(Refusal),
    Broken(Status),
}

/// What has come so far.
#[derive(Default)]
struct Partial {
    /// The first frame: as a rule it is all of it.
    first: Bytes,
    /// Everything, once there is more.
    whole: Vec<u8>,
}

/// Reads the message. `allowed` is how long the check may take; most messages are there with their headers, and it is
/// not asked.
pub(super) async fn read<B>(
    mut body: B,
    headers: &HeaderMap,
    allowed: impl FnOnce() -> Duration,
) -> Result<Received, Unread<B>>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
{
    let mut partial = Partial::default();
    let come = poll_fn(|context| {
        loop {
            match Pin::new(&mut body).poll_frame(context) {
                Poll::Ready(Some(frame)) => {
                    if let Err(stop) = partial.take(frame) {
                        return Poll::Ready(Some(Err(stop)));
                    }
                }
                Poll::Ready(None) => return Poll::Ready(Some(Ok(()))),
                Poll::Pending => return Poll::Ready(None),
            }
        }
    });
    let (ended, waited) = match come.await {
        Some(ended) => (ended, Duration::ZERO),
        None => {
            let begun = clock::monotonic();
            let ended = Box::pin(rest(&mut body, &mut partial, headers, begun + allowed())).await;
            (ended, begun.elapsed())
        }
    };
    match ended.and_then(|()| partial.end()) {
        Ok(bytes) => Ok(Received { bytes, waited }),
        Err(Stop::Refused(refusal)) => Err(Unread::Denied(refusal, body)),
        Err(Stop::Broken(status)) => Err(Unread::Broken(status)),
    }
}

/// What headers take in memory, in bytes: they are decoded into buffers that double as they grow.
pub(super) fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| 2 * (name.as_str().len() + value.len()) + 64).sum()
}

/// Reads a message to its end that did not come at once.
async fn rest<B>(
    body: &mut B,
    partial: &mut Partial,
    headers: &HeaderMap,
    deadline: Instant,
) -> Result<(), Stop>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
{
    let headers = size(headers);
    partial.keep_alone();
    let frames = async {
        loop {
            let held = headers + partial.whole.capacity();
            bounds::hold(held, Phase::Receiving)?;
            let frame = poll_fn(|context| {
                bounds::wait(Pin::new(&mut *body).poll_frame(context), Phase::Receiving, || held)
            });
            match frame.await? {
                Some(frame) => partial.take(frame)?,
                None => return Ok(()),
            }
        }
    };
    let late = Err(Stop::Refused(Refusal::Late));
    tokio::time::timeout_at(deadline.into(), frames).await.unwrap_or(late)
}

impl Partial {
    /// Takes one more frame in.
    fn take<E: std::fmt::Display>(&mut self, frame: Result<Frame<Bytes>, E>) -> Result<(), Stop> {
        let frame = frame.map_err(|error| Stop::Broken(Status::cancelled(error.to_string())))?;
        let Ok(data) = frame.into_data() else { return Ok(()) };
        if self.bytes().is_empty() {
            self.first = data;
        } else {
            self.keep_alone();
            self.reserve(data.len());
            self.whole.extend_from_slice(&data);
        }
        match self.announced() {
            Some(length) if length > MAX_MESSAGE_SIZE => Err(Stop::Refused(Refusal::TooLarge)),
            Some(length) if self.bytes().len() > PREFIX + length => {
                Err(Stop::Broken(Status::internal("there is more than one message")))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The message, when nothing more comes.
    fn end(&mut self) -> Result<Bytes, Stop> {
        let Some(announced) = self.announced() else {
            return Err(Stop::Broken(Status::internal("the call has no message")));
        };
        if self.bytes()[0] != 0 {
            return Err(Stop::Broken(Status::unimplemented("compression was not agreed on")));
        }
        if self.bytes().len() != PREFIX + announced {
            return Err(Stop::Broken(Status::internal("the message is not as long as it says")));
        }
        let mut whole = match self.whole.is_empty() {
            true => std::mem::take(&mut self.first),
            false => std::mem::take(&mut self.whole).into(),
        };
        Ok(whole.split_off(PREFIX))
    }

    /// The length by its prefix, once that is there.
    fn announced(&self) -> Option<usize> {
        let [_, length @ ..] = self.bytes().first_chunk::<PREFIX>()?;
        Some(u32::from_be_bytes(*length) as usize)
    }

    fn bytes(&self) -> &[u8] {
        if self.whole.is_empty() { &self.first } else { &self.whole }
    }

    /// Moves the first frame into memory of its own: it is a part of what was read from the connection, and holds
    /// the rest of that as well.
    fn keep_alone(&mut self) {
        let first = std::mem::take(&mut self.first);
        if !first.is_empty() {
            self.whole = first.to_vec();
        }
    }

    /// Makes room for so many more bytes: doubles, and never goes past what was announced.
    fn reserve(&mut self, more: usize) {
        let (length, capacity) = (self.whole.len(), self.whole.capacity());
        let needed = length + more;
        if needed > capacity {
            let announced = self.announced().map_or(needed, |announced| PREFIX + announced);
            let doubled = (2 * capacity).min(announced).max(needed);
            self.whole.reserve_exact(doubled - length);
        }
    }
}

impl From<NoRoom> for Stop {
    fn from(_: NoRoom) -> Self {
        Self::Refused(Refusal::NoRoom)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::StreamBody;
    use proptest::prelude::*;
    use tonic::Code;

    use super::*;
    use crate::ext_authz::service::framed;

    /// What was read, or why it was not.
    async fn read_from(parts: &[&[u8]]) -> Result<Bytes, Result<Refusal, Code>> {
        let frames: Vec<_> =
            parts.iter().map(|part| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(part)))).collect();
        let body = StreamBody::new(tokio_stream::iter(frames));
        match read(body, &HeaderMap::new(), || Duration::from_secs(1)).await {
            Ok(received) => Ok(received.bytes),
            Err(Unread::Denied(refusal, _)) => Err(Ok(refusal)),
            Err(Unread::Broken(status)) => Err(Err(status.code())),
        }
    }

    #[tokio::test]
    async fn what_is_no_call_of_one_message_is_refused() {
        for (bytes, code) in [
            (&b""[..], Code::Internal),
            (&[0, 0, 0, 0], Code::Internal),
            (&[0, 0, 0, 0, 2, 7], Code::Internal),
            (&[0, 0, 0, 0, 0, 7], Code::Internal),
            (&[1, 0, 0, 0, 0], Code::Unimplemented),
        ] {
            assert_eq!(read_from(&[bytes]).await, Err(Err(code)), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn message_that_is_too_large_is_no_error_and_needs_no_more_than_its_prefix() {
        for prefix in [[0, 0xff, 0xff, 0xff, 0xff], [0, 1, 0, 0, 1]] {
            assert_eq!(read_from(&[&prefix[..3], &prefix[3..]]).await, Err(Ok(Refusal::TooLarge)));
        }
        let most = framed(MAX_MESSAGE_SIZE, |into| into.resize(PREFIX + MAX_MESSAGE_SIZE, 7));
        let parts: Vec<_> = most.chunks(16 * 1024).collect();
        assert_eq!(read_from(&parts).await.map(|message| message.len()), Ok(MAX_MESSAGE_SIZE));
    }

    #[tokio::test]
    async fn message_that_does_not_come_is_late() {
        let frames = tokio_stream::once(Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[0, 0, 0]))));
        let body = StreamBody::new(Box::pin(futures_util::stream::StreamExt::chain(
            frames,
            futures_util::stream::pending(),
        )));
        let read = read(body, &HeaderMap::new(), || Duration::from_millis(20)).await;
        assert!(matches!(read, Err(Unread::Denied(Refusal::Late, _))), "late");
    }

    proptest! {
        #[test]
        fn message_is_read_in_however_many_pieces_it_comes(
            content in proptest::collection::vec(any::<u8>(), 0..300),
            cuts in proptest::collection::vec(0..305_usize, 0..8),
        ) {
            let whole = framed(content.len(), |into| into.extend_from_slice(&content));
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(whole.len())).collect();
            cuts.extend([0, whole.len()]);
            cuts.sort_unstable();
            let parts: Vec<_> = cuts.windows(2).map(|cut| &whole[cut[0]..cut[1]]).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("builds");
            let read = runtime.block_on(read_from(&parts));
            prop_assert_eq!(read, Ok(Bytes::from(content)));
        }
    }
}
