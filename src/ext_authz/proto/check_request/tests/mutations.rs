//! Changes to single fields of a valid message, at any depth. All lengths around a changed field are right again, so that
//! readers get as far as the change.

use proptest::{collection, prelude::*, sample::Index};

/// A field of a message.
#[derive(Debug, Clone)]
struct WireField {
    key: Vec<u8>,
    content: Content,
    /// Added to the length that stands before the content.
    length_error: i64,
}

#[derive(Debug, Clone)]
enum Content {
    /// Everything after the key.
    Raw(Vec<u8>),
    Bytes(Vec<u8>),
    Message(Vec<WireField>),
}

/// A change of the field at some place.
#[derive(Debug, Clone)]
pub(super) struct Mutation {
    place: Index,
    change: Change,
}

#[derive(Debug, Clone)]
enum Change {
    Remove,
    Repeat,
    /// Another key: number and wire type.
    Key(u32, u8),
    /// The same key in more bytes than it needs.
    LongKey(usize),
    LengthError(i64),
    /// Other bytes in place of the content.
    Bytes(Vec<u8>),
    /// Other bytes after the key.
    Raw(Vec<u8>),
    /// A field before this one with a varint of this many bytes, the last of which may be too large.
    Varint {
        number: u32,
        size: usize,
        last: u8,
    },
    /// Groups within one another before the field; the innermost is empty or holds a field, and its end may be wrong.
    Group {
        number: u32,
        depth: usize,
        has_field: bool,
        end: u32,
    },
}

pub(super) fn mutation() -> impl Strategy<Value = Mutation> {
    let bytes = || collection::vec(any::<u8>(), 0..12);
    let change = prop_oneof![
        Just(Change::Remove),
        Just(Change::Repeat),
        (0..17_u32, 0..8_u8).prop_map(|(number, kind)| Change::Key(number, kind)),
        (1..12_usize).prop_map(Change::LongKey),
        (-3..4_i64).prop_map(Change::LengthError),
        bytes().prop_map(Change::Bytes),
        bytes().prop_map(Change::Raw),
        (1..17_u32, 1..12_usize, 0..4_u8).prop_map(|(number, size, last)| Change::Varint {
            number,
            size,
            last
        }),
        (14..16_u32, prop_oneof![1..4_usize, 92..103_usize], any::<bool>(), 14..16_u32)
            .prop_map(|(number, depth, has_field, end)| Change::Group { number, depth, has_field, end }),
    ];
    (any::<Index>(), change).prop_map(|(place, change)| Mutation { place, change })
}

/// The message with these changes.
pub(super) fn mutated(message: &[u8], mutations: Vec<Mutation>) -> Vec<u8> {
    let mut fields = parsed(message, &[]);
    for Mutation { place, change } in mutations {
        let count = count(&fields);
        if count > 0 {
            apply(&mut fields, &mut place.index(count), &change);
        }
    }
    encoded(&fields)
}

/// Which fields hold messages, by the numbers on the way to them.
fn is_message(path: &[u32]) -> bool {
    matches!(
        path,
        [1] | [1, 1 | 2 | 4 | 10]
            | [1, 1 | 2, 1]
            | [1, 1 | 2, 1, 1 | 2]
            | [1, 4, 2]
            | [1, 4, 2, 3 | 13]
            | [1, 4, 2, 13, 1]
    )
}

/// The fields of a valid message without groups.
fn parsed(mut message: &[u8], path: &[u32]) -> Vec<WireField> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let start = message;
        let key = take_varint(&mut message);
        let key_bytes = start[..start.len() - message.len()].to_vec();
        let value = message;
        let content = if key & 7 == 2 {
            let length = take_varint(&mut message) as usize;
            let (content, rest) = message.split_at(length);
            message = rest;
            let path = [path, &[(key >> 3) as u32]].concat();
            if is_message(&path) {
                Content::Message(parsed(content, &path))
            } else {
                Content::Bytes(content.to_vec())
            }
        } else {
            assert_eq!(key & 7, 0, "the message has varints only");
            take_varint(&mut message);
            Content::Raw(value[..value.len() - message.len()].to_vec())
        };
        fields.push(WireField { key: key_bytes, content, length_error: 0 });
    }
    fields
}

fn take_varint(bytes: &mut &[u8]) -> u64 {
    let end = bytes.iter().position(|byte| byte & 0x80 == 0).expect("valid");
    let (varint, rest) = bytes.split_at(end + 1);
    *bytes = rest;
    varint.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
}

/// A varint in at least so many bytes.
fn varint(mut value: u64, size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 || bytes.len() + 1 < size {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn count(fields: &[WireField]) -> usize {
    let inner =
        |field: &WireField| if let Content::Message(fields) = &field.content { count(fields) } else { 0 };
    fields.iter().map(|field| 1 + inner(field)).sum()
}

/// Applies the change to the field that comes at this place. Counts the place down.
fn apply(fields: &mut Vec<WireField>, place: &mut usize, change: &Change) -> bool {
    for at in 0..fields.len() {
        if *place == 0 {
            change_field(fields, at, change);
            return true;
        }
        *place -= 1;
        if let Content::Message(inner) = &mut fields[at].content
            && apply(inner, place, change)
        {
            return true;
        }
    }
    false
}

fn change_field(fields: &mut Vec<WireField>, at: usize, change: &Change) {
    let field = &mut fields[at];
    match change {
        Change::Remove => _ = fields.remove(at),
        Change::Repeat => {
            let copy = field.clone();
            fields.push(copy);
        }
        Change::Key(number, kind) => field.key = varint(u64::from(number << 3 | u32::from(*kind)), 1),
        Change::LongKey(size) => field.key = varint(take_varint(&mut &*field.key), *size),
        Change::LengthError(error) => field.length_error = *error,
        Change::Bytes(bytes) => field.content = Content::Bytes(bytes.clone()),
        Change::Raw(bytes) => field.content = Content::Raw(bytes.clone()),
        Change::Varint { number, size, last } => {
            let mut content = vec![0x80; size - 1];
            content.push(*last);
            let field = WireField {
                key: varint(u64::from(number << 3), 1),
                content: Content::Raw(content),
                length_error: 0,
            };
            fields.insert(at, field);
        }
        Change::Group { number, depth, has_field, end } => {
            let key = |kind: u32, number: &u32| varint(u64::from(number << 3 | kind), 1);
            let mut content = key(3, number).repeat(depth - 1);
            content.extend(if *has_field { &[8, 1][..] } else { &[] });
            content.extend(key(4, number).repeat(depth - 1));
            content.extend(key(4, end));
            let group = WireField { key: key(3, number), content: Content::Raw(content), length_error: 0 };
            fields.insert(at, group);
        }
    }
}

fn encoded(fields: &[WireField]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for WireField { key, content, length_error } in fields {
        bytes.extend(key);
        let content = match content {
            Content::Raw(raw) => {
                bytes.extend(raw);
                continue;
            }
            Content::Bytes(content) => content.clone(),
            Content::Message(fields) => encoded(fields),
        };
        let length = (content.len() as i64).saturating_add(*length_error).max(0);
        bytes.extend(varint(length as u64, 1));
        bytes.extend(content);
    }
    bytes
}

#[test]
fn message_without_mutations_is_unchanged() {
    let message = [0x0a, 0x09, 0x52, 0x07, 0x0a, 0x01, b'a', 0x12, 0x02, b'b', b'c'];
    assert_eq!(mutated(&message, vec![]), message);
}
