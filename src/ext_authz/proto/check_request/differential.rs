//! Compares the view of a message with what the generated types read from it, for tests and fuzzing.
//!
//! The comparison goes both ways. The view refuses exactly what [`ReadFields`] refuses: the generated types, reduced to
//! the fields that a check needs. It reads the values that the whole generated types read, where these accept the message.
//! So there is one difference to the whole types, and it is this list: a fault inside a field that is missing in
//! [`ReadFields`] is not seen.

use std::collections::HashMap;

use envoy_types::{
    ext_authz::v3::pb::CheckRequest,
    pb::envoy::{
        config::core::v3::{HeaderMap, address::Address as Kind},
        service::auth::v3::attribute_context::HttpRequest,
    },
};
use prost::Message;

use super::CheckRequestView;

/// The fields of a `CheckRequest` that are read. All others are skipped.
#[derive(Clone, PartialEq, Message)]
struct ReadFields {
    #[prost(message, optional, tag = "1")]
    attributes: Option<ReadAttributes>,
}

/// Of an `AttributeContext`.
#[derive(Clone, PartialEq, Message)]
struct ReadAttributes {
    #[prost(message, optional, tag = "1")]
    source: Option<ReadPeer>,
    #[prost(message, optional, tag = "4")]
    request: Option<ReadRequest>,
    #[prost(map = "string, string", tag = "10")]
    context_extensions: HashMap<String, String>,
}

/// Of a `Peer`.
#[derive(Clone, PartialEq, Message)]
struct ReadPeer {
    #[prost(message, optional, tag = "1")]
    address: Option<ReadAddress>,
}

/// Of an `Address`.
#[derive(Clone, PartialEq, Message)]
struct ReadAddress {
    #[prost(oneof = "ReadAddressKind", tags = "1, 2, 3")]
    kind: Option<ReadAddressKind>,
}

/// The kinds of an `Address`. Only a socket's address is read; of the others, only that they are there.
#[derive(Clone, PartialEq, prost::Oneof)]
enum ReadAddressKind {
    #[prost(message, tag = "1")]
    Socket(ReadSocketAddress),
    #[prost(bytes, tag = "2")]
    Pipe(Vec<u8>),
    #[prost(bytes, tag = "3")]
    Internal(Vec<u8>),
}

/// Of a `SocketAddress`.
#[derive(Clone, PartialEq, Message)]
struct ReadSocketAddress {
    #[prost(string, tag = "2")]
    address: String,
}

/// Of a `Request`.
#[derive(Clone, PartialEq, Message)]
struct ReadRequest {
    #[prost(message, optional, tag = "2")]
    http: Option<ReadHttpRequest>,
}

/// Of an `HttpRequest`.
#[derive(Clone, PartialEq, Message)]
struct ReadHttpRequest {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    method: String,
    #[prost(map = "string, string", tag = "3")]
    headers: HashMap<String, String>,
    #[prost(string, tag = "4")]
    path: String,
    #[prost(int64, tag = "9")]
    size: i64,
    #[prost(string, tag = "11")]
    body: String,
    #[prost(bytes, tag = "12")]
    raw_body: Vec<u8>,
    #[prost(message, optional, tag = "13")]
    header_map: Option<HeaderMap>,
}

/// The values that a reader has read.
#[derive(Debug, PartialEq)]
struct Reading {
    source: Option<String>,
    extensions: HashMap<String, String>,
    texts: [String; 3],
    headers: HashMap<String, String>,
    header_map: Vec<(String, Vec<u8>)>,
    size: i64,
    body: String,
    raw_body: Vec<u8>,
}

/// Reads a message in each way and compares the readings.
///
/// # Panics
/// When they differ.
pub(super) fn compare(message: &[u8]) {
    let view = CheckRequestView::read(message).map(|view| Reading::from(&view));
    match (ReadFields::decode(message), &view) {
        (Ok(reduced), Ok(view)) => assert_eq!(*view, Reading::from(reduced)),
        (Err(_), Err(_)) => {}
        (Ok(_), Err(error)) => panic!("refused what the generated types accept: {error}"),
        (Err(error), Ok(_)) => panic!("accepted what the generated types refuse: {error}"),
    }
    if let Ok(whole) = CheckRequest::decode(message) {
        assert_eq!(view.as_ref(), Ok(&Reading::from(whole)));
    }
}

impl From<&CheckRequestView<'_>> for Reading {
    fn from(view: &CheckRequestView<'_>) -> Self {
        let as_map = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let http = &view.http;
        let headers = as_map(&http.headers);
        for (name, value) in &headers {
            assert_eq!(http.header(name), Some(value.as_str()));
        }
        let header_map = http.header_map.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec()));
        Self {
            source: view.source.map(str::to_owned),
            extensions: as_map(&view.extensions),
            texts: [http.id, http.method, http.path].map(str::to_owned),
            headers,
            header_map: header_map.collect(),
            size: http.size,
            body: String::from_utf8(http.body.to_vec()).expect("the reader has checked it"),
            raw_body: http.raw_body.to_vec(),
        }
    }
}

impl From<ReadFields> for Reading {
    fn from(message: ReadFields) -> Self {
        let attributes = message.attributes.unwrap_or_default();
        let source = match attributes.source.and_then(|peer| peer.address?.kind) {
            Some(ReadAddressKind::Socket(socket)) => Some(socket.address),
            _ => None,
        };
        let http = attributes.request.and_then(|request| request.http).unwrap_or_default();
        let ReadHttpRequest { id, method, headers, path, size, body, raw_body, header_map } = http;
        let texts = [id, method, path];
        let (extensions, header_map) = (attributes.context_extensions, raw_headers(header_map));
        Self { source, extensions, texts, headers, header_map, size, body, raw_body }
    }
}

impl From<CheckRequest> for Reading {
    fn from(message: CheckRequest) -> Self {
        let attributes = message.attributes.unwrap_or_default();
        let source = match attributes.source.and_then(|peer| peer.address?.address) {
            Some(Kind::SocketAddress(socket)) => Some(socket.address),
            _ => None,
        };
        let http = attributes.request.and_then(|request| request.http).unwrap_or_default();
        let HttpRequest { id, method, headers, path, size, body, raw_body, header_map, .. } = http;
        let texts = [id, method, path];
        let (extensions, header_map) = (attributes.context_extensions, raw_headers(header_map));
        Self { source, extensions, texts, headers, header_map, size, body, raw_body }
    }
}

/// The headers of a `header_map`: raw bytes, or text where there are none.
fn raw_headers(map: Option<HeaderMap>) -> Vec<(String, Vec<u8>)> {
    let headers = map.unwrap_or_default().headers.into_iter();
    let value = |text: String, raw: Vec<u8>| if raw.is_empty() { text.into_bytes() } else { raw };
    headers.map(|header| (header.key, value(header.value, header.raw_value))).collect()
}
