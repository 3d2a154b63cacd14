//! What is left of a key's limits, as fields of the answer. It is another in each, so it is written as it goes out,
//! without the generated types, which a test compares it with.

use super::{
    ExtAuthzConfig, client_headers, headers,
    metadata::{self, Of},
    request::Copies,
    wire::{put_bytes, put_double, put_enum, put_message},
};
use crate::{config::RateLimitFields, limits::Standing};

/// Numbers of fields of `OkHttpResponse` (envoy/service/auth/v3/external_auth.proto).
const HEADERS: u32 = 2;
pub(super) const HEADERS_TO_REMOVE: u32 = 5;
const RESPONSE_HEADERS_TO_ADD: u32 = 6;

/// `HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD` (envoy/config/core/v3/base.proto).
const OVERWRITE: i32 = 2;

/// Writes into the OK response what upstream and client are told.
pub(super) fn put_headers(ok: &mut Vec<u8>, standing: &Standing, copies: &Copies, config: &ExtAuthzConfig) {
    let mut digits = itoa::Buffer::new();
    for header in headers::TABLE.iter().filter(|header| header.is_counted()) {
        let is_chosen = config.upstream_headers.has(header.name);
        match is_chosen.then(|| header.left(standing)).flatten() {
            Some(left) => put_header(ok, HEADERS, header.name, digits.format(left)),
            None if copies.may_have(header.name) => put_bytes(ok, HEADERS_TO_REMOVE, header.name.as_bytes()),
            None => {}
        }
    }
    for (name, value) in client_headers::x_ratelimit(standing) {
        put_header(ok, RESPONSE_HEADERS_TO_ADD, name, digits.format(value));
    }
    if config.rate_limit_fields == RateLimitFields::Draft10 {
        for (name, value) in client_headers::draft_10(standing) {
            put_header(ok, RESPONSE_HEADERS_TO_ADD, name, &value);
        }
    }
}

/// A `HeaderValueOption`.
fn put_header(into: &mut Vec<u8>, number: u32, name: &str, value: &str) {
    put_message(into, number, |option| {
        put_message(option, 1, |header| {
            put_bytes(header, 1, name.as_bytes());
            put_bytes(header, 2, value.as_bytes());
        });
        put_enum(option, 3, OVERWRITE);
    });
}

/// Writes into the `CheckResponse` what Envoy is told.
pub(super) fn put_metadata(answer: &mut Vec<u8>, standing: &Standing, config: &ExtAuthzConfig) {
    const DYNAMIC_METADATA: u32 = 4;
    put_message(answer, DYNAMIC_METADATA, |metadata| {
        for field in metadata::TABLE.iter().filter(|field| config.metadata.has(field.name)) {
            match field.of {
                Of::Decision(_) => {}
                Of::Windows(number_of) => put_field(metadata, field.name, |value| {
                    put_message(value, STRUCT, |windows| {
                        for (span, left) in standing.each() {
                            let number = number_of(&left) as f64;
                            put_field(windows, span.name(), |value| put_double(value, NUMBER, number));
                        }
                    });
                }),
                Of::Counted => put_field(metadata, field.name, |value| {
                    put_bytes(value, STRING, standing.counted.name().as_bytes());
                }),
            }
        }
    });
}

/// Kinds of a `Value` (google/protobuf/struct.proto).
const NUMBER: u32 = 2;
const STRING: u32 = 3;
const STRUCT: u32 = 5;

/// A field of a `Struct`, with the `Value` that `write` writes.
fn put_field(into: &mut Vec<u8>, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
    put_message(into, 1, |entry| {
        put_bytes(entry, 1, name.as_bytes());
        put_message(entry, 2, write);
    });
}
