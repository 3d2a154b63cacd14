//! The view reads what the generated types read, and refuses what they refuse.

use std::collections::HashMap;

use envoy_types::{
    ext_authz::v3::pb::CheckRequest,
    pb::envoy::{
        config::core::v3::{
            Address, HeaderMap, HeaderValue, Pipe, SocketAddress, address::Address as Kind,
            socket_address::PortSpecifier,
        },
        service::auth::v3::{
            AttributeContext,
            attribute_context::{HttpRequest, Peer, Request},
        },
    },
};
use proptest::{collection, option, prelude::*};
use prost::Message;

use super::{super::reader::MalformedMessage, differential::compare, *};

mod mutations;

fn text() -> impl Strategy<Value = String> {
    "[a-z:/?=é-]{0,12}"
}

fn pairs() -> impl Strategy<Value = HashMap<String, String>> {
    collection::hash_map(text(), text(), 0..5)
}

fn peer() -> impl Strategy<Value = Peer> {
    let kind = prop_oneof![
        text().prop_map(|address| Kind::SocketAddress(SocketAddress { address, ..SocketAddress::default() })),
        text().prop_map(|path| Kind::Pipe(Pipe { path, mode: 7 })),
    ];
    (option::of(option::of(kind)), text(), pairs()).prop_map(|(address, service, labels)| Peer {
        address: address.map(|address| Address { address }),
        service,
        labels,
        ..Peer::default()
    })
}

fn http() -> impl Strategy<Value = HttpRequest> {
    let header = (text(), text(), collection::vec(any::<u8>(), 0..6))
        .prop_map(|(key, value, raw_value)| HeaderValue { key, value, raw_value });
    let map = option::of(collection::vec(header, 0..4).prop_map(|headers| HeaderMap { headers }));
    let bodies = (text(), collection::vec(any::<u8>(), 0..20));
    (text(), text(), text(), pairs(), map, any::<i64>(), bodies).prop_map(
        |(id, method, path, headers, header_map, size, (body, raw_body))| HttpRequest {
            id,
            method: method.clone(),
            path,
            headers,
            header_map,
            size,
            body,
            raw_body,
            host: method,
            ..HttpRequest::default()
        },
    )
}

fn message() -> impl Strategy<Value = CheckRequest> {
    let request = option::of(option::of(http()).prop_map(|http| Request { time: None, http }));
    (option::of(peer()), option::of(peer()), request, pairs()).prop_map(
        |(source, destination, request, context_extensions)| {
            let attributes = AttributeContext {
                source,
                destination,
                request,
                context_extensions,
                ..AttributeContext::default()
            };
            CheckRequest { attributes: Some(attributes) }
        },
    )
}

proptest! {
    #[test]
    fn message_is_read_alike(message in message()) {
        compare(&message.encode_to_vec());
    }

    /// One message after another is one message, in which fields of the same number are merged.
    #[test]
    fn merged_messages_are_read_alike(first in message(), second in message()) {
        compare(&[first.encode_to_vec(), second.encode_to_vec()].concat());
    }

    #[test]
    fn damaged_bytes_are_read_or_refused_alike(
        message in message(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = message.encode_to_vec();
        prop_assume!(!bytes.is_empty());
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        compare(&bytes);
    }

    #[test]
    fn any_bytes_are_read_or_refused_alike(bytes in collection::vec(any::<u8>(), 0..200)) {
        compare(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]
    #[test]
    fn mutated_messages_are_read_or_refused_alike(
        message in message(),
        mutations in collection::vec(mutations::mutation(), 1..4),
    ) {
        compare(&mutations::mutated(&message.encode_to_vec(), mutations));
    }
}

#[test]
fn unknown_fields_of_every_kind_are_skipped() {
    let known = [0x0a, 0x02, 0x52, 0x00];
    // Field 15 as a varint, 64 bits, 32 bits, bytes, and a group with a group in it.
    for unknown in [
        &[0x78, 0x96, 0x01][..],
        &[0x79, 1, 2, 3, 4, 5, 6, 7, 8],
        &[0x7d, 1, 2, 3, 4],
        &[0x7a, 2, 0xff, 0xff],
        &[0x7b, 0x08, 0x01, 0x13, 0x14, 0x7c],
    ] {
        for message in [[unknown, &known].concat(), [&known[..], unknown].concat()] {
            assert!(CheckRequest::decode(&*message).is_ok());
            compare(&message);
        }
    }
}

#[test]
fn bytes_that_are_no_message_are_refused() {
    for bytes in [
        &[0x0a][..],
        &[0x0a, 5, 1],
        &[0x00, 0x00],
        &[0x0b],
        &[0x0c],
        &[0x0f],
        &[0x08, 0x01],
        &[0xff; 11],
        &[0x0a, 0x06, 0x22, 0x04, 0x12, 0x02, 0x0a, 0x01],
    ] {
        assert!(CheckRequest::decode(bytes).is_err(), "{bytes:?}");
        assert_eq!(CheckRequestView::read(bytes), Err(MalformedMessage), "{bytes:?}");
    }
}

#[test]
fn port_of_a_connection_is_read() {
    let at = |kind| {
        let address = Address { address: Some(kind) };
        let destination = Peer { address: Some(address), ..Peer::default() };
        let attributes = AttributeContext { destination: Some(destination), ..AttributeContext::default() };
        CheckRequest { attributes: Some(attributes) }.encode_to_vec()
    };
    let port_specifier = Some(PortSpecifier::PortValue(5432));
    let socket = SocketAddress { port_specifier, address: "10.0.0.7".into(), ..SocketAddress::default() };
    assert_eq!(destination_port(&at(Kind::SocketAddress(socket))), Some(5432));
    assert_eq!(destination_port(&at(Kind::SocketAddress(SocketAddress::default()))), None);
    assert_eq!(destination_port(&at(Kind::Pipe(Pipe { path: "/run/a.sock".into(), mode: 7 }))), None);
    assert_eq!(destination_port(&[0x0a, 5, 1]), None);
    assert_eq!(destination_port(&[]), None);
}
