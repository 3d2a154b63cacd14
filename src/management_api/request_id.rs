//! The id of a request.

use std::sync::{Arc, OnceLock};

use axum::http::{HeaderMap, HeaderName};
use data_encoding::HEXLOWER;

use super::access::Operation;

/// The id of a request: the caller's own, or a random one. It learns which operation the request is.
#[derive(Clone, Default)]
pub(super) struct RequestId(Arc<Inner>);

#[derive(Default)]
struct Inner {
    text: String,
    operation: OnceLock<Operation>,
}

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Maximum length of a caller's own id.
const MAX_ID: usize = 128;

impl RequestId {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        let is_plain = |id: &&str| {
            !id.is_empty() && id.len() <= MAX_ID && id.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let text = match given.filter(is_plain) {
            Some(id) => id.to_owned(),
            None => HEXLOWER.encode(&rand::random::<[u8; 16]>()),
        };
        Self(Arc::new(Inner { text, operation: OnceLock::new() }))
    }

    pub(super) fn text(&self) -> &str {
        &self.0.text
    }

    pub(super) fn set_operation(&self, operation: Operation) {
        let _ = self.0.operation.set(operation);
    }

    /// The operation, once it is known.
    pub(super) fn operation(&self) -> Option<Operation> {
        self.0.operation.get().copied()
    }
}
