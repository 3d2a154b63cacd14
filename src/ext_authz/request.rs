//! Reads Envoy's `CheckRequest`: what is asked for, by whom, and where the credential was.

use std::{collections::BTreeMap, net::IpAddr};

use http::HeaderMap;

use super::wire::{Check, Http, Malformed};
use crate::{
    attributes::{Attributes, body::Body, media_type, route::RouteSettings},
    config::{ClientAddress, CredentialSource, RemoveHeaders},
};

mod copies;
mod search;

pub(super) use copies::Copies;
use search::Search;
pub(super) use search::Strip;

/// A `CheckRequest`, read once.
#[derive(Debug)]
pub(super) struct Parsed<'a> {
    /// What the decision is about.
    pub(super) attributes: Attributes<'a>,
    /// Where the credential was, so that it goes no further.
    pub(super) strip: Strip<'a>,
    /// Headers of our names that it may have had.
    pub(super) copies: Copies,
}

/// How requests are to be read.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Where credentials are looked for.
    pub credential_sources: Vec<CredentialSource>,
    /// Whose word counts for the client's address.
    pub client_address: ClientAddress,
    /// Whether headers of our names are looked for.
    pub remove_headers: RemoveHeaders,
}

impl<'a> Parsed<'a> {
    /// Reads a request and the metadata that came with it. What Envoy left out is empty.
    ///
    /// # Errors
    /// [`Malformed`] when the message cannot be read.
    pub(super) fn read(
        message: &'a [u8],
        metadata: &HeaderMap,
        reading: &'a Reading,
    ) -> Result<Self, Malformed> {
        let Check { source, http, extensions } = Check::read(message)?;
        let (credential, strip) = Search::all(&http, &reading.credential_sources);
        let (client, is_vouched_for) = client(source, metadata, reading.client_address);
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
        let copies = Copies::find(&http, reading.remove_headers);
        Ok(Self { attributes, strip, copies })
    }
}

/// Of a name that comes twice, the last value counts.
fn last_of_each<'a>(pairs: Vec<(&'a str, &'a str)>) -> impl IntoIterator<Item = (&'a str, &'a str)> {
    let map: BTreeMap<_, _> = pairs.into_iter().collect();
    map
}

/// Envoy's word for the client's address, which respects the proxies that it trusts, comes as gRPC
/// metadata that no client can forge. Without it, the peer of the connection is the client. The address, and whether it
/// is Envoy's word.
fn client(source: Option<&str>, metadata: &HeaderMap, from: ClientAddress) -> (Option<IpAddr>, bool) {
    match metadata.get("x-client-ip").filter(|_| from == ClientAddress::Auto) {
        Some(told) => (told.to_str().ok().and_then(|told| told.parse().ok()), true),
        None => (source.and_then(|source| source.parse().ok()), false),
    }
}

/// The id that the caller and the access log know the request by: the header where Envoy sends it
/// here, else the stream's id.
fn request_id<'a>(http: &Http<'a>) -> &'a str {
    text(http, "x-request-id").filter(|id| !id.is_empty()).unwrap_or(http.id)
}

/// By the rule that Envoy answers gRPC callers by.
fn is_grpc(http: &Http<'_>) -> bool {
    let rest = text(http, "content-type").and_then(|kind| kind.strip_prefix("application/grpc"));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
}

/// The body, if it is all there and is what it looks like.
fn body<'a>(http: &Http<'a>) -> Body<'a> {
    let bytes = if http.raw_body.is_empty() { http.body } else { http.raw_body };
    if bytes.is_empty() {
        return Body::Absent;
    }
    // The header's presence says nothing: Envoy sends "false" as well, behind what a client may have sent.
    let is_partial = values(http, "x-envoy-auth-partial-body").any(|partial| partial != b"false");
    let is_cut = usize::try_from(http.size).is_ok_and(|size| size != 0 && size != bytes.len());
    let is_upgrade = values(http, "upgrade").next().is_some();
    let is_plain = media_type::is_json_in_utf8(values(http, "content-type"))
        && media_type::is_coded_as("identity", values(http, "content-encoding"))
        // Envoy has undone the one coding that HTTP/1.1 cannot do without.
        && media_type::is_coded_as("chunked", values(http, "transfer-encoding"));
    if is_partial || is_cut || is_upgrade || !is_plain { Body::Unreadable } else { Body::Whole(bytes.into()) }
}

/// The first value of a header, if it is text.
fn text<'a>(http: &Http<'a>, name: &str) -> Option<&'a str> {
    values(http, name).next().and_then(|value| std::str::from_utf8(value).ok())
}

/// Every value of a header, from whichever form Envoy sent: `headers`, or with
/// `encode_raw_headers` the `header_map`, whose bytes are untouched.
fn values<'a>(http: &Http<'a>, name: &str) -> impl Iterator<Item = &'a [u8]> {
    let raw = http.header_map.iter().filter(move |(key, _)| key.eq_ignore_ascii_case(name));
    http.header(name).map(str::as_bytes).into_iter().chain(raw.map(|(_, value)| *value))
}

#[cfg(test)]
mod tests;
