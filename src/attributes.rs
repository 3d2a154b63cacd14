//! What a check is about: the parts of a request that a decision or its answer needs.

use std::net::IpAddr;

use crate::{credential::Credential, decision::Reason};

pub mod body;
pub mod route;

use body::Body;
use route::{Misconfigured, RouteSettings};

/// One request, parsed once at the edge.
#[derive(Debug)]
pub struct Attributes {
    /// The credential presented, or what is wrong with it.
    pub credential: Result<Credential, Reason>,
    /// The request's id, for the caller and the logs; empty when Envoy gave none.
    pub request_id: String,
    /// Envoy's own id of the request, the same when it asks again; empty when it gave none.
    pub stream_id: String,
    /// `GET`, `POST` and so on.
    pub method: String,
    /// The path without its query, which may hold a key.
    pub path: String,
    /// Who sent the request, as far as that can be trusted.
    pub client: Option<IpAddr>,
    /// Whether a gRPC client asks, which reads no bodies.
    pub is_grpc: bool,
    /// What Envoy sent of the body.
    pub body: Body,
    /// What the route asks for.
    pub route: Result<RouteSettings, Misconfigured>,
}
