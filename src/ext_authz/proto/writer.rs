//! Writes fields of a protobuf message (protobuf.dev/programming-guides/encoding).

/// Starts a field of this length.
pub(crate) fn put_length(into: &mut Vec<u8>, number: u32, length: usize) {
    put_varint(into, u64::from(number << 3 | 2));
    put_varint(into, length as u64);
}

/// A field of text or bytes.
pub(crate) fn put_bytes(into: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_length(into, number, bytes.len());
    into.extend_from_slice(bytes);
}

/// A short field that is a message, of the fields that `write` writes.
pub(crate) fn put_message(into: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
    put_message_of(into, number, 0, write);
}

/// The same for a message of about `expected` bytes. Its length comes first and takes one byte or more: with a good
/// guess nothing has to be moved.
pub(crate) fn put_message_of(
    into: &mut Vec<u8>,
    number: u32,
    expected: usize,
    write: impl FnOnce(&mut Vec<u8>),
) {
    put_varint(into, u64::from(number << 3 | 2));
    let start = into.len();
    put_varint(into, expected as u64);
    let content = into.len();
    write(into);
    let length = into.len() - content;
    if length == expected {
        return;
    }
    let end = into.len();
    put_varint(into, length as u64);
    let size = into.len() - end;
    if size == content - start {
        into.copy_within(end.., start);
        into.truncate(end);
    } else {
        let prefix = into.split_off(end);
        into.splice(start..content, prefix);
    }
}

/// A field of an enumeration or an `int32`.
pub(crate) fn put_int(into: &mut Vec<u8>, number: u32, value: i32) {
    put_varint(into, u64::from(number << 3));
    put_varint(into, i64::from(value).cast_unsigned());
}

/// A field of type `bool`.
pub(crate) fn put_bool(into: &mut Vec<u8>, number: u32, value: bool) {
    put_int(into, number, value.into());
}

/// A field of type `double`.
pub(crate) fn put_double(into: &mut Vec<u8>, number: u32, value: f64) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_of_a_message_is_right_whatever_was_expected() {
        for length in [0, 1, 127, 128, 300, 20_000] {
            for expected in [0, 1, 127, 128, 300, 20_000] {
                let mut written = vec![7];
                put_message_of(&mut written, 3, expected, |message| {
                    message.resize(message.len() + length, 9)
                });
                let mut whole = vec![7];
                put_bytes(&mut whole, 3, &vec![9; length]);
                assert_eq!(written, whole, "{length} bytes, and {expected} expected");
            }
        }
    }
}
