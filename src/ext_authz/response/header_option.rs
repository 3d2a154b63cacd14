//! Headers as Envoy takes them: `HeaderValueOption` (envoy/config/core/v3/base.proto).

use crate::ext_authz::proto::writer::{put_bytes, put_int, put_message_of};

/// `HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD`. Envoy 1.37 honours the action and appends by default; 1.40 overwrites
/// with any action.
const OVERWRITE: i32 = 2;

/// `HeaderAppendAction.APPEND_IF_EXISTS_OR_ADD`, the default of responses to clients.
const APPEND: i32 = 0;

/// Writes a header that replaces others of its name, as this field of the response.
pub(super) fn put_header(into: &mut Vec<u8>, number: u32, name: &str, value: &str) {
    put_option(into, number, name, value, OVERWRITE);
}

/// Writes a header that leaves others of its name, as this field of the response.
pub(super) fn append_header(into: &mut Vec<u8>, number: u32, name: &str, value: &str) {
    put_option(into, number, name, value, APPEND);
}

fn put_option(into: &mut Vec<u8>, number: u32, name: &str, value: &str, action: i32) {
    // Each field has a key and a length of one byte, if it is short.
    let expected = name.len() + value.len() + 4;
    put_message_of(into, number, expected + 4, |option| {
        put_message_of(option, 1, expected, |header| {
            put_bytes(header, 1, name.as_bytes());
            put_bytes(header, 2, value.as_bytes());
        });
        if action != APPEND {
            put_int(option, 3, action);
        }
    });
}
