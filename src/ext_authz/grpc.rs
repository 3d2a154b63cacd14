//! gRPC over HTTP/2 as far as one unary method needs it (grpc.io, PROTOCOL-HTTP2): one message in, one message out, no
//! layers in between.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE};
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

pub(super) mod drain;
pub(super) mod frame;
pub(super) mod message;

/// The path of the method `Check`.
pub const CHECK_PATH: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The body of a response: a message, and then the status as trailers.
#[derive(Debug, Default)]
pub struct ResponseBody {
    message: Bytes,
    ended: bool,
}

/// How much of a message goes into one frame. Frames below 1 KiB are copied into the connection's buffer, so
/// that a response, and several that are ready together, leave by one system call.
const FRAME: usize = 1000;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const OK: HeaderValue = HeaderValue::from_static("0");

/// The response with this message, or with this status.
pub(super) fn response(result: Result<Bytes, Status>) -> Response<ResponseBody> {
    match result {
        Ok(message) => {
            let mut response = Response::new(ResponseBody { message, ended: false });
            response.headers_mut().insert(CONTENT_TYPE, GRPC);
            response
        }
        Err(status) => {
            let mut response = status.into_http();
            *response.body_mut() = ResponseBody { message: Bytes::new(), ended: true };
            response
        }
    }
}

/// The time that the caller allows, by the header `grpc-timeout`.
pub(super) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    parse_timeout(headers.get("grpc-timeout")?.to_str().ok()?)
}

/// Reads `TimeoutValue TimeoutUnit`: at most eight digits and one letter.
fn parse_timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 60 * 60)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

impl Body for ResponseBody {
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

    use super::{frame::framed, *};

    #[tokio::test]
    async fn response_ends_with_its_status() {
        let message = framed(2500, |into| into.extend_from_slice(&[7; 2500]));
        let body = ResponseBody { message: message.clone(), ended: false };
        let body = body.collect().await.expect("never fails");
        assert_eq!(body.trailers().expect("trailers")["grpc-status"], "0");
        assert_eq!(body.to_bytes(), message);
        assert_eq!(message[..5], [0, 0, 0, 0x09, 0xc4]);
    }

    #[test]
    fn timeouts_are_read_in_every_unit() {
        for (value, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("200m", Some(Duration::from_millis(200))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("5n", Some(Duration::from_nanos(5))),
            ("", None),
            ("m", None),
            ("1", None),
            ("+1S", None),
            ("123456789S", None),
            ("1é", None),
        ] {
            assert_eq!(parse_timeout(value), expected, "{value}");
        }
    }
}
