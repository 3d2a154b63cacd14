//! The gRPC method `Check` by hand: one message in, one message out, no layers in between.
//!
//! gRPC over HTTP/2 (grpc.io, PROTOCOL-HTTP2) as far as a unary call needs it: a message has a flag for
//! compression, which is never agreed on here, and its length before it.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use super::{
    ExtAuthz,
    message::{self, PREFIX, Received, Refusal, Unread},
};
use crate::{
    bounds::{self, NoRoom, Phase},
    limiter::RateLimiter,
    store::KeyStore,
};

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

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const OK: HeaderValue = HeaderValue::from_static("0");

impl<S: KeyStore, L: RateLimiter> ExtAuthz<S, L> {
    /// Answers one call. What is wrong with the call itself is its gRPC status.
    pub async fn call<B>(&self, request: Request<B>) -> Response<Answer>
    where
        B: Body<Data = Bytes, Error: std::fmt::Display + Send> + Unpin + Send + 'static,
    {
        let (parts, body) = request.into_parts();
        let headers = &parts.headers;
        let answered = match message::read(body, headers, || self.0.allowed_time(headers)).await {
            Ok(message) => self.decided(headers, &message).await,
            Err(Unread::Denied(refusal, body)) => {
                self.0.discard(body);
                Ok(self.0.refuse(refusal))
            }
            Err(Unread::Broken(status)) => Err(status),
        };
        match answered {
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

    /// Answers a message; one that has to wait may have to make room.
    async fn decided(&self, headers: &HeaderMap, message: &Received) -> Result<Bytes, Status> {
        let mut answer = std::pin::pin!(self.answer_late(headers, &message.bytes, message.waited));
        let mut has_waited = false;
        let answered = poll_fn(|context| {
            let polled = answer.as_mut().poll(context);
            has_waited |= polled.is_pending();
            bounds::wait(polled, Phase::Deciding, || message::size(headers) + message.bytes.len())
        })
        .await;
        if has_waited {
            bounds::answered();
        }
        answered.unwrap_or_else(|NoRoom| Ok(self.0.refuse(Refusal::NoRoom)))
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
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn answer_ends_with_its_status() {
        let message = framed(2500, |into| into.extend_from_slice(&[7; 2500]));
        let body = Answer { message: message.clone(), ended: false }.collect().await.expect("never fails");
        assert_eq!(body.trailers().expect("trailers")["grpc-status"], "0");
        assert_eq!(body.to_bytes(), message);
        assert_eq!(message[..5], [0, 0, 0, 0x09, 0xc4]);
    }
}
