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
    /// The credential in the request, or the reason why there is no usable one.
    pub credential: Result<Credential, Reason>,
    /// The request's id as it was sent, for the caller and the logs. Empty if Envoy sent none.
    pub request_id: &'a str,
    /// Envoy's own id of the request. It is the same when Envoy repeats a check. Empty if Envoy sent none.
    pub stream_id: &'a str,
    /// `GET`, `POST` and so on.
    pub method: &'a str,
    /// The path without its query, because the query may contain a key.
    pub path: &'a str,
    /// The client's address, from the source that `--client-address` sets.
    pub client: Option<IpAddr>,
    /// The same address, if Envoy vouches for it. The peer of a connection may be a load balancer that all clients
    /// share.
    pub vouched_client: Option<IpAddr>,
    /// Whether the client speaks gRPC, and so does not read response bodies.
    pub is_grpc: bool,
    /// The body, or the part of it that Envoy sent.
    pub body: Body<'a>,
    /// The settings of the route.
    pub route: Result<RouteSettings, InvalidRouteSetting>,
}

impl Attributes<'_> {
    /// Whether they describe an HTTP request. Envoy's filter for TCP connections sends no method, path or id.
    pub fn is_http(&self) -> bool {
        !(self.method.is_empty() && self.path.is_empty() && self.stream_id.is_empty())
    }

    /// The printable characters of the request's id, at most 128.
    pub fn printable_request_id(&self) -> String {
        self.request_id.chars().filter(char::is_ascii_graphic).take(128).collect()
    }
}
