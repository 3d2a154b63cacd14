//! What a check is about: the parts of a request that a decision or its answer needs.

use crate::{credential::Credential, decision::Reason};

/// One request, parsed once at the edge.
#[derive(Debug)]
pub struct Attributes {
    /// The credential presented, or what is wrong with it.
    pub credential: Result<Credential, Reason>,
    /// The request's id, for the caller and the logs; empty when Envoy gave none.
    pub request_id: String,
    /// `GET`, `POST` and so on.
    pub method: String,
    /// The path without its query, which may hold a key.
    pub path: String,
}
