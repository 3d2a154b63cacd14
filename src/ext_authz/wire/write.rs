//! Writes fields of a protobuf message (protobuf.dev/programming-guides/encoding).

/// The beginning of a field that is so many bytes long.
pub(in crate::ext_authz) fn put_length(into: &mut Vec<u8>, number: u32, length: usize) {
    put_varint(into, u64::from(number << 3 | 2));
    put_varint(into, length as u64);
}

/// A field of text or bytes.
pub(in crate::ext_authz) fn put_bytes(into: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_length(into, number, bytes.len());
    into.extend_from_slice(bytes);
}

/// A field that is a message, of the fields that `write` writes.
pub(in crate::ext_authz) fn put_message(into: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
    put_varint(into, u64::from(number << 3 | 2));
    let start = into.len();
    write(into);
    // Its length stands before it, and is known only now.
    let mut length = Vec::with_capacity(2);
    put_varint(&mut length, (into.len() - start) as u64);
    into.splice(start..start, length);
}

/// A field of an enumeration.
pub(in crate::ext_authz) fn put_enum(into: &mut Vec<u8>, number: u32, value: i32) {
    put_varint(into, u64::from(number << 3));
    put_varint(into, i64::from(value).cast_unsigned());
}

/// A field of type `double`.
pub(in crate::ext_authz) fn put_double(into: &mut Vec<u8>, number: u32, value: f64) {
    put_varint(into, u64::from(number << 3 | 1));
    into.extend_from_slice(&value.to_le_bytes());
}

fn put_varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}
