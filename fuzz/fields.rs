//! Another reader of a `CheckResponse`, which shows its fields as they were written: the generated types drop a field that
//! they do not know, and keep one of two values.

use std::collections::BTreeMap;

use envoy_types::ext_authz::v3::pb::CheckResponse;
use prost::Message;

/// The messages in a `CheckResponse`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    CheckResponse,
    Status,
    DeniedHttpResponse,
    HttpStatus,
    OkHttpResponse,
    HeaderValueOption,
    HeaderValue,
    Struct,
    FieldsEntry,
    Value,
    ListValue,
}

/// A value of a field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    Number(u64),
    Bytes(Vec<u8>),
    Message(Fields),
}

/// The values of each field, by its number.
type Fields = BTreeMap<u32, Vec<Node>>;

/// A `CheckResponse` as the generated types read it, which has no field that they do not know, and none twice.
///
/// Two differences to what they write are known. Keystile writes the metadata in several pieces, of which a reader makes one.
/// And it writes the value of a header also if it is empty, which the generated types leave out.
///
/// # Panics
/// When it has other fields or values.
pub fn checked(message: &[u8]) -> CheckResponse {
    let response = CheckResponse::decode(message).expect("a message");
    let generated = response.encode_to_vec();
    let fields = [message, &generated].map(|bytes| read(Kind::CheckResponse, bytes));
    assert_eq!(fields[0], fields[1], "as written, and as the generated types write it");
    assert_eq!(CheckResponse::decode(&*generated).as_ref(), Ok(&response));
    response
}

/// The message in the field of a message, if it is one.
fn message(kind: Kind, number: u32) -> Option<Kind> {
    Some(match (kind, number) {
        (Kind::CheckResponse, 1) => Kind::Status,
        (Kind::CheckResponse, 2) => Kind::DeniedHttpResponse,
        (Kind::CheckResponse, 3) => Kind::OkHttpResponse,
        (Kind::CheckResponse, 4) | (Kind::Value, 5) => Kind::Struct,
        (Kind::DeniedHttpResponse, 1) => Kind::HttpStatus,
        (Kind::DeniedHttpResponse, 2) | (Kind::OkHttpResponse, 2 | 6) => Kind::HeaderValueOption,
        (Kind::HeaderValueOption, 1) => Kind::HeaderValue,
        (Kind::Struct, 1) => Kind::FieldsEntry,
        (Kind::FieldsEntry, 2) | (Kind::ListValue, 1) => Kind::Value,
        (Kind::Value, 6) => Kind::ListValue,
        _ => return None,
    })
}

fn read(kind: Kind, bytes: &[u8]) -> Fields {
    let mut fields = Fields::new();
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let key = varint(&mut rest);
        let number = u32::try_from(key >> 3).expect("a number of a field");
        let value = match key & 7 {
            0 => Node::Number(varint(&mut rest)),
            1 => Node::Bytes(take(&mut rest, 8).to_vec()),
            2 => {
                let length = varint(&mut rest) as usize;
                let bytes = take(&mut rest, length);
                match message(kind, number) {
                    Some(Kind::Struct) if kind == Kind::CheckResponse => {
                        pieces.extend_from_slice(bytes);
                        continue;
                    }
                    Some(inner) => Node::Message(read(inner, bytes)),
                    None => Node::Bytes(bytes.to_vec()),
                }
            }
            other => panic!("a field of the wire type {other}"),
        };
        if (kind, number, &value) != (Kind::HeaderValue, 2, &Node::Bytes(Vec::new())) {
            fields.entry(number).or_default().push(value);
        }
    }
    match kind {
        Kind::CheckResponse => {
            fields.insert(4, vec![Node::Message(read(Kind::Struct, &pieces))]);
        }
        // The entries of a map have no order.
        Kind::Struct => fields.values_mut().for_each(|entries| entries.sort()),
        _ => {}
    }
    fields
}

fn varint(rest: &mut &[u8]) -> u64 {
    let mut value = 0;
    for at in 0..10 {
        let byte = take(rest, 1)[0];
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            return value;
        }
    }
    panic!("a varint of more than ten bytes")
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, after) = rest.split_at_checked(length).expect("a whole field");
    *rest = after;
    taken
}
