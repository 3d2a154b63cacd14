//! Reads Envoy's `CheckRequest`: the request's attributes, and where its credential was.

use std::{collections::BTreeMap, net::IpAddr};

use http::HeaderMap;

use super::{
    config::RequestConfig,
    proto::{
        check_request::{CheckRequestView, HttpRequestView},
        reader::MalformedMessage,
    },
};
use crate::{
    attributes::{Attributes, body::Body, media_type, route::RouteSettings},
    config::ClientAddress,
};

mod credential;
mod header_values;
mod spoofed_headers;

pub(super) use credential::CredentialRemoval;
use credential::CredentialSearch;
use header_values::{text, values};
pub(super) use spoofed_headers::SpoofedHeaders;

/// A `CheckRequest`, read once.
#[derive(Debug)]
pub(super) struct ParsedRequest<'a> {
    /// What the decision is about.
    pub(super) attributes: Attributes<'a>,
    /// What takes the credential out of the request.
    pub(super) removal: CredentialRemoval<'a>,
    /// Headers with Keystile's names that the request may have.
    pub(super) spoofed: SpoofedHeaders,
}

impl<'a> ParsedRequest<'a> {
    /// Reads a request and the metadata that came with it. Fields that Envoy did not send are empty.
    ///
    /// # Errors
    /// [`MalformedMessage`] when the message cannot be read.
    pub(super) fn read(
        message: &'a [u8],
        metadata: &HeaderMap,
        config: &'a RequestConfig,
    ) -> Result<Self, MalformedMessage> {
        let CheckRequestView { source, http, extensions } = CheckRequestView::read(message)?;
        let (credential, removal) = CredentialSearch::run(&http, config);
        let (client, is_vouched_for) = client(source, metadata, config.client_address);
        let attributes = Attributes {
            credential,
            request_id: request_id(&http),
            path: http.path.split_once('?').map_or(http.path, |(path, _)| path),
            client,
            vouched_client: client.filter(|_| is_vouched_for),
            is_grpc: is_grpc(&http),
            body: body(&http),
            route: RouteSettings::parse(last_of_each(extensions)),
            stream_id: http.id,
            method: http.method,
        };
        let spoofed = SpoofedHeaders::find(&http, config.remove_headers);
        Ok(Self { attributes, removal, spoofed })
    }
}

/// Of a repeated name the last value counts.
fn last_of_each<'a>(pairs: Vec<(&'a str, &'a str)>) -> impl IntoIterator<Item = (&'a str, &'a str)> {
    let map: BTreeMap<_, _> = pairs.into_iter().collect();
    map
}

/// The client's address, and whether Envoy vouches for it. Envoy sends the address as gRPC metadata, which no client can
/// forge, and knows which proxies to trust. Without that metadata, the peer of the connection is the client.
fn client(source: Option<&str>, metadata: &HeaderMap, from: ClientAddress) -> (Option<IpAddr>, bool) {
    match metadata.get("x-client-ip").filter(|_| from == ClientAddress::Auto) {
        Some(address) => (address.to_str().ok().and_then(|address| address.parse().ok()), true),
        None => (source.and_then(|source| source.parse().ok()), false),
    }
}

/// The id by which the caller and the access log know the request: the header where Envoy sends it, else the stream's
/// id.
fn request_id<'a>(http: &HttpRequestView<'a>) -> &'a str {
    text(http, "x-request-id").filter(|id| !id.is_empty()).unwrap_or(http.id)
}

/// Whether the caller speaks gRPC, by Envoy's own rule.
fn is_grpc(http: &HttpRequestView<'_>) -> bool {
    let rest = text(http, "content-type").and_then(|kind| kind.strip_prefix("application/grpc"));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
}

/// The body, if it is complete and JSON.
fn body<'a>(http: &HttpRequestView<'a>) -> Body<'a> {
    let bytes = if http.raw_body.is_empty() { http.body } else { http.raw_body };
    if bytes.is_empty() {
        return Body::Absent;
    }
    // Envoy sends "false" as well, and a client may have sent another value before it.
    let is_partial = values(http, "x-envoy-auth-partial-body").any(|partial| partial != b"false");
    let is_cut = usize::try_from(http.size).is_ok_and(|size| size != 0 && size != bytes.len());
    let is_upgrade = values(http, "upgrade").next().is_some();
    let is_plain = media_type::is_json_in_utf8(values(http, "content-type"))
        && media_type::is_coded_as("identity", values(http, "content-encoding"))
        // Envoy has undone the one coding that HTTP/1.1 cannot do without.
        && media_type::is_coded_as("chunked", values(http, "transfer-encoding"));
    if is_partial || is_cut || is_upgrade || !is_plain { Body::Unreadable } else { Body::Whole(bytes.into()) }
}

#[cfg(test)]
mod tests;
