//! Reads the rest of the body of a call that has its response already.
//!
//! A stream that is reset instead may end in Envoy before the response arrives, and after a thousand of them the
//! HTTP/2 library ends the connection.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::sync::Semaphore;

/// Bodies that are read to their end at the same time.
const MAX_BODIES: usize = 1024;
/// How long each may take. A peer that is slower does not mean to end.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Reads bodies to their end, a limited number at a time.
pub(crate) struct BodyDrain(Arc<Semaphore>);

impl BodyDrain {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_BODIES)))
    }

    /// Reads the body to its end in a task of its own. Past the limit, drops it.
    pub(crate) fn drain<B>(&self, mut body: B)
    where
        B: Body<Data = Bytes> + Unpin + Send + 'static,
    {
        let Ok(permit) = Arc::clone(&self.0).try_acquire_owned() else { return };
        tokio::spawn(async move {
            let rest = async { while let Some(Ok(_)) = body.frame().await {} };
            let _ = tokio::time::timeout(TIMEOUT, rest).await;
            drop(permit);
        });
    }
}
