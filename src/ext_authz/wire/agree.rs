//! Compares what is read from the bytes of a message with what the generated types read: for tests and fuzzing.

use std::collections::HashMap;

use envoy_types::{ext_authz::v3::pb::CheckRequest, pb::envoy::config::core::v3::address::Address as Kind};
use prost::Message;

use super::Check;

/// Compares both readings of a message, where the generated types can read it at all.
pub(super) fn agree(message: &[u8]) {
    let Ok(decoded) = CheckRequest::decode(message) else { return };
    let read = Check::read(message).expect("what they can read, so can we");
    let attributes = decoded.attributes.unwrap_or_default();
    let source = match attributes.source.and_then(|peer| peer.address?.address) {
        Some(Kind::SocketAddress(socket)) => Some(socket.address),
        _ => None,
    };
    assert_eq!(read.source, source.as_deref());
    let as_map = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    assert_eq!(as_map(&read.extensions), attributes.context_extensions);
    let http = attributes.request.and_then(|request| request.http).unwrap_or_default();
    assert_eq!((read.http.id, read.http.method, read.http.path), (&*http.id, &*http.method, &*http.path));
    assert_eq!(as_map(&read.http.headers), http.headers);
    for (name, value) in &http.headers {
        assert_eq!(read.http.header(name), Some(value.as_str()));
    }
    let map: Vec<_> = http.header_map.iter().flat_map(|map| &map.headers).collect();
    assert_eq!(read.http.header_map.len(), map.len());
    for ((name, value), header) in read.http.header_map.iter().zip(map) {
        let expected = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
        assert_eq!((*name, *value), (&*header.key, expected));
    }
    assert_eq!(
        (read.http.size, read.http.body, read.http.raw_body),
        (http.size, http.body.as_bytes(), &*http.raw_body)
    );
}
