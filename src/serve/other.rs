//! Calls that are not checks: health and reflection, answered by tonic.

use std::task::Poll;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc;
use tonic::{Status, service::Routes};
use tower_service::Service;

use crate::bounds::{self, Phase};

/// Maximum number of bytes that such a call may send in total. It sends only the names that it asks for.
const MAX_BYTES: usize = 16 * 1024;

/// Answers a call.
pub(super) async fn call(
    mut routes: Routes,
    request: Request<Incoming>,
) -> Response<impl Body<Data = Bytes, Error = Status> + Send + use<>> {
    // Registers the call as an open one, which may last for as long as its peer wants, from its first message on. The
    // first poll returns pending, because a call is registered only once it has a task of its own.
    let mut has_waited = false;
    let open = std::future::poll_fn(|_| {
        if std::mem::replace(&mut has_waited, true) {
            Poll::Ready(bounds::hold(MAX_BYTES, Phase::Open))
        } else {
            Poll::Pending
        }
    });
    if open.await.is_err() {
        return Status::resource_exhausted("too many calls").into_http();
    }
    let request = request.map(taken_up);
    match routes.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Reads a body at once and not only on demand: unread bytes would fill the flow-control window of the whole
/// connection.
fn taken_up(mut body: Incoming) -> impl Body<Data = Bytes, Error = Status> + Send {
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut left = MAX_BYTES;
        let frames = async {
            while let Some(Ok(frame)) = body.frame().await {
                let Ok(data) = frame.into_data() else { continue };
                let Some(rest) = left.checked_sub(data.len() + 1) else {
                    let _ = sender.send(Err(Status::resource_exhausted("the call sends too many bytes")));
                    return;
                };
                left = rest;
                // A copy in its own memory, so that it is not a slice of the connection's read buffer.
                let frame = Frame::data(Bytes::copy_from_slice(&data));
                if sender.send(Ok(frame)).is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = frames => {}
            () = sender.closed() => {}
        }
    });
    let frames =
        futures_util::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    StreamBody::new(Box::pin(frames))
}
