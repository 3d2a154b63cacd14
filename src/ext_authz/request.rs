//! Reads Envoy's `CheckRequest`: what is asked for, by whom, and where the credential was.

use std::net::IpAddr;

use envoy_types::{
    ext_authz::v3::pb::CheckRequest,
    pb::envoy::{
        config::core::v3::{Address, address::Address as Kind},
        service::auth::v3::{AttributeContext, attribute_context::HttpRequest},
    },
};
use tonic::metadata::MetadataMap;

use crate::{
    attributes::{Attributes, body::Body, route::RouteSettings},
    config::{ClientAddress, CredentialSource},
};

mod search;

use search::Search;
pub(super) use search::Strip;

/// A `CheckRequest`, read once.
#[derive(Debug)]
pub(super) struct Parsed {
    /// What the decision is about.
    pub(super) attributes: Attributes,
    /// Where the credential was, so that it goes no further.
    pub(super) strip: Strip,
}

/// How requests are to be read.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Where credentials are looked for.
    pub credential_sources: Vec<CredentialSource>,
    /// Whose word counts for the client's address.
    pub client_address: ClientAddress,
}

impl Parsed {
    /// Reads a request and the metadata that came with it. What Envoy left out is empty.
    pub(super) fn new(request: CheckRequest, metadata: &MetadataMap, reading: &Reading) -> Self {
        let context = request.attributes.unwrap_or_default();
        let client = client(&context, metadata, reading.client_address);
        let extensions =
            context.context_extensions.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let route = RouteSettings::parse(extensions);
        let mut http = context.request.and_then(|request| request.http).unwrap_or_default();
        let body = body(&mut http);
        let (credential, strip) = Search::all(&http, &reading.credential_sources);
        let path = http.path.split_once('?').map_or(http.path.as_str(), |(path, _)| path).to_owned();
        let attributes = Attributes {
            credential,
            request_id: request_id(&http),
            path,
            client,
            is_grpc: is_grpc(&http),
            body,
            route,
            stream_id: http.id,
            method: http.method,
        };
        Self { attributes, strip }
    }
}

/// Envoy's word for the client's address, which respects the proxies that it trusts, comes as gRPC
/// metadata that no client can forge. Without it, the peer of the connection is the client.
fn client(context: &AttributeContext, metadata: &MetadataMap, source: ClientAddress) -> Option<IpAddr> {
    let told = metadata.get("x-client-ip").filter(|_| source == ClientAddress::Auto);
    if let Some(told) = told {
        return told.to_str().ok()?.parse().ok();
    }
    let Address { address: Some(Kind::SocketAddress(socket)) } = context.source.as_ref()?.address.as_ref()?
    else {
        return None;
    };
    socket.address.parse().ok()
}

/// The id that the caller and the access log know the request by: the header where Envoy sends it
/// here, else the stream's id.
fn request_id(http: &HttpRequest) -> String {
    let id = text(http, "x-request-id").filter(|id| !id.is_empty()).unwrap_or(&http.id);
    id.chars().filter(char::is_ascii_graphic).take(128).collect()
}

/// By the rule that Envoy answers gRPC callers by.
fn is_grpc(http: &HttpRequest) -> bool {
    let rest = text(http, "content-type").and_then(|kind| kind.strip_prefix("application/grpc"));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
}

/// Takes the body out, if it is all there and is what it looks like.
fn body(http: &mut HttpRequest) -> Body {
    let bytes = match std::mem::take(&mut http.raw_body) {
        raw if raw.is_empty() => std::mem::take(&mut http.body).into_bytes(),
        raw => raw,
    };
    if bytes.is_empty() {
        return Body::Absent;
    }
    // The header's presence says nothing: Envoy sends "false" as well.
    let partial = text(http, "x-envoy-auth-partial-body").is_some_and(|partial| partial != "false");
    let cut = usize::try_from(http.size).is_ok_and(|size| size != 0 && size != bytes.len());
    let encoded = values(http, "content-encoding").any(|coding| !coding.eq_ignore_ascii_case(b"identity"));
    let upgraded = values(http, "upgrade").next().is_some();
    match partial || cut || encoded || upgraded || !is_plain_json(http) {
        true => Body::Unreadable,
        false => Body::Whole(bytes),
    }
}

/// Whether nothing says that the body is to be read as anything but JSON in UTF-8. What is JSON can
/// be a form as well, and name another model there: `{"a": "&model=b&", "model": "c"}`.
fn is_plain_json(http: &HttpRequest) -> bool {
    let mut kinds =
        values(http, "content-type").map(|kind| String::from_utf8_lossy(kind).to_ascii_lowercase());
    kinds.all(|kind| {
        let mut parts = kind.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let json = media == "application/json"
            || media == "text/json"
            || (media.starts_with("application/") && media.ends_with("+json"));
        let mut charsets = parts.filter_map(|parameter| parameter.strip_prefix("charset="));
        json && charsets.all(|charset| matches!(charset.trim_matches('"'), "utf-8" | "utf8" | "us-ascii"))
    })
}

/// The first value of a header, if it is text.
fn text<'a>(http: &'a HttpRequest, name: &str) -> Option<&'a str> {
    values(http, name).next().and_then(|value| std::str::from_utf8(value).ok())
}

/// Every value of a header, from whichever form Envoy sent: `headers`, or with
/// `encode_raw_headers` the `header_map`, whose bytes are untouched.
fn values<'a>(http: &'a HttpRequest, name: &str) -> impl Iterator<Item = &'a [u8]> {
    let joined = http.headers.get(name).map(String::as_bytes);
    let raw = http.header_map.iter().flat_map(|map| &map.headers);
    let raw = raw.filter(move |header| header.key.eq_ignore_ascii_case(name));
    joined.into_iter().chain(raw.map(|header| match header.raw_value.as_slice() {
        [] => header.value.as_bytes(),
        raw => raw,
    }))
}

#[cfg(test)]
mod tests;
