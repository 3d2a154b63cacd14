//! The gRPC method `Check` by hand: one message in, one message out, no layers in between.
//!
//! gRPC over HTTP/2 (grpc.io, PROTOCOL-HTTP2) as far as a unary call needs it: a message has a flag for
//! compression, which is never agreed on here, and its length before it.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tonic::Status;

use super::{ExtAuthz, MAX_MESSAGE_SIZE};
use crate::{limiter::RateLimiter, store::KeyStore};

/// Where Envoy calls.
pub const CHECK_PATH: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The body of an answer: a message, and then the status as trailers.
#[derive(Debug, Default)]
pub struct Answer {
    message: Bytes,
    ended: bool,
}

/// How much of a message goes into one frame. Frames below 1 KiB are copied into the connection's buffer, so
/// that an answer, and several that are ready together, leave by one system call.
const FRAME: usize = 1000;

/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const OK: HeaderValue = HeaderValue::from_static("0");

impl<S: KeyStore, L: RateLimiter> ExtAuthz<S, L> {
    /// Answers one call. What is wrong with the call itself is its gRPC status.
    pub async fn call<B>(&self, request: Request<B>) -> Response<Answer>
    where
        B: Body<Data = Bytes, Error: std::fmt::Display>,
    {
        let (parts, body) = request.into_parts();
        let answered = async {
            match read(body).await? {
                Some(message) => self.answer(&parts.headers, &message).await,
                None => Ok(self.0.deny_unread("too large")),
            }
        };
        match answered.await {
            Ok(message) => {
                let mut response = Response::new(Answer { message, ended: false });
                response.headers_mut().insert(CONTENT_TYPE, GRPC);
                response
            }
            Err(status) => {
                let mut response = status.into_http();
                *response.body_mut() = Answer { message: Bytes::new(), ended: true };
                response
            }
        }
    }
}

/// The one message of a call; `None` when it is too large, which is the client's doing and no failure of the call.
async fn read<B: Body<Data = Bytes, Error: std::fmt::Display>>(body: B) -> Result<Option<Bytes>, Status> {
    let mut body = std::pin::pin!(body);
    let (mut first, mut more, mut length) = (Bytes::new(), BytesMut::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::cancelled(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        match length {
            // Heard to its end, so that Envoy hears the answer and not of a stream that broke.
            length if length > MAX_MESSAGE_SIZE + PREFIX => more = BytesMut::new(),
            // As a rule it comes in one piece.
            _ if first.is_empty() => first = data,
            _ => more.extend_from_slice(&data),
        }
    }
    if length > MAX_MESSAGE_SIZE + PREFIX {
        return Ok(None);
    }
    let mut whole = match more.is_empty() {
        true => first,
        false => [first, more.freeze()].concat().into(),
    };
    if whole.len() < PREFIX {
        return Err(Status::internal("the call has no message"));
    }
    let (compressed, length) = (whole.get_u8(), whole.get_u32() as usize);
    match (compressed, length == whole.len()) {
        (0, true) => Ok(Some(whole)),
        (0, false) => Err(Status::internal("the message is not as long as it says")),
        _ => Err(Status::unimplemented("compression was not agreed on")),
    }
}

/// A message with its prefix.
pub(super) fn framed(length: usize, write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut message = Vec::with_capacity(PREFIX + length);
    message.extend_from_slice(&[0; PREFIX]);
    write(&mut message);
    let written = u32::try_from(message.len() - PREFIX).unwrap_or(u32::MAX);
    message[1..PREFIX].copy_from_slice(&written.to_be_bytes());
    message.into()
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !self.message.is_empty() {
            let part = self.message.len().min(FRAME);
            return Poll::Ready(Some(Ok(Frame::data(self.message.split_to(part)))));
        }
        if std::mem::replace(&mut self.ended, true) {
            return Poll::Ready(None);
        }
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert(Status::GRPC_STATUS, OK);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.message.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use tonic::Code;

    use super::*;

    async fn read_from(parts: &[&[u8]]) -> Result<Bytes, Code> {
        let frames: Vec<_> =
            parts.iter().map(|part| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(part)))).collect();
        let read = read(StreamBody::new(tokio_stream::iter(frames))).await;
        read.map(|message| message.expect("small enough")).map_err(|status| status.code())
    }

    #[tokio::test]
    async fn message_is_read_in_however_many_pieces_it_comes() {
        let whole = [&[0, 0, 0, 0, 3][..], b"abc"].concat();
        for cut in 0..=whole.len() {
            let (first, rest) = whole.split_at(cut);
            assert_eq!(read_from(&[first, rest]).await.as_deref(), Ok(&b"abc"[..]), "cut at {cut}");
        }
        assert_eq!(read_from(&[&[0; 5]]).await.as_deref(), Ok(&b""[..]), "an empty message is one");
    }

    #[tokio::test]
    async fn what_is_no_call_of_one_message_is_refused() {
        for (bytes, code) in [
            (&b""[..], Code::Internal),
            (&[0, 0, 0, 0], Code::Internal),
            (&[0, 0, 0, 0, 2, 7], Code::Internal),
            (&[0, 0, 0, 0, 0, 7], Code::Internal),
            (&[0, 0xff, 0xff, 0xff, 0xff], Code::Internal),
            (&[1, 0, 0, 0, 0], Code::Unimplemented),
        ] {
            assert_eq!(read_from(&[bytes]).await, Err(code), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn message_that_is_too_large_is_no_error() {
        let large = |length| {
            let bytes = framed(length, |into| into.resize(PREFIX + length, 7));
            let frames: Vec<_> = bytes
                .chunks(16 * 1024)
                .map(|part| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(part))))
                .collect();
            read(StreamBody::new(tokio_stream::iter(frames)))
        };
        let most = large(MAX_MESSAGE_SIZE).await.expect("a call").map(|message| message.len());
        assert_eq!(most, Some(MAX_MESSAGE_SIZE));
        assert_eq!(large(MAX_MESSAGE_SIZE + 1).await.expect("a call"), None);
    }

    #[tokio::test]
    async fn answer_ends_with_its_status() {
        let message = framed(2500, |into| into.extend_from_slice(&[7; 2500]));
        let body = Answer { message: message.clone(), ended: false }.collect().await.expect("never fails");
        assert_eq!(body.trailers().expect("trailers")["grpc-status"], "0");
        assert_eq!(body.to_bytes(), message);
        assert_eq!(message[..5], [0, 0, 0, 0x09, 0xc4]);
    }
}
