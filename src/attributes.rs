//! The attributes of a request that a decision or its response needs.

use std::net::IpAddr;

use crate::{credential::Credential, decision::Reason};

pub mod body;
pub mod media_type;
pub mod route;

use body::Body;
use route::{InvalidRouteSetting, RouteSettings};

/// One request, parsed once at the edge.
#[derive(Debug)]
pub struct Attributes<'a> {
    /// The credential presented, or what is wrong with it.
    pub credential: Result<Credential, Reason>,
    /// The request's id, for the caller and the logs, as it was sent; empty when Envoy gave none.
    pub request_id: &'a str,
    /// Envoy's own id of the request, the same when it asks again; empty when it gave none.
    pub stream_id: &'a str,
    /// `GET`, `POST` and so on.
    pub method: &'a str,
    /// The path without its query, which may hold a key.
    pub path: &'a str,
    /// The address that sent the request, as far as it can be trusted.
    pub client: Option<IpAddr>,
    /// The same, where Envoy vouches for it. The peer of a connection may be a load balancer that all clients share.
    pub vouched_client: Option<IpAddr>,
    /// Whether the client speaks gRPC, and so reads no bodies.
    pub is_grpc: bool,
    /// The body, as far as Envoy sent it.
    pub body: Body<'a>,
    /// The settings of the route.
    pub route: Result<RouteSettings, InvalidRouteSetting>,
}

impl Attributes<'_> {
    /// The request's id, as far as it can be shown.
    pub fn printable_request_id(&self) -> String {
        self.request_id.chars().filter(char::is_ascii_graphic).take(128).collect()
    }
}
