//! Writes a `Struct` (google/protobuf/struct.proto), in which Envoy takes metadata.

use crate::ext_authz::proto::writer::{put_bool, put_bytes, put_double, put_message};

/// Writes the fields of a `Struct`.
pub(super) struct StructWriter<'a>(&'a mut Vec<u8>);

/// The kinds of a `Value`.
const NUMBER: u32 = 2;
const STRING: u32 = 3;
const BOOL: u32 = 4;
const STRUCT: u32 = 5;
const LIST: u32 = 6;

impl<'a> StructWriter<'a> {
    /// Writes into a message of type `Struct`.
    pub(super) fn new(message: &'a mut Vec<u8>) -> Self {
        Self(message)
    }

    pub(super) fn text(&mut self, name: &str, text: &str) {
        self.field(name, |value| put_bytes(value, STRING, text.as_bytes()));
    }

    pub(super) fn number(&mut self, name: &str, number: f64) {
        self.field(name, |value| put_double(value, NUMBER, number));
    }

    pub(super) fn boolean(&mut self, name: &str, boolean: bool) {
        self.field(name, |value| put_bool(value, BOOL, boolean));
    }

    pub(super) fn list(&mut self, name: &str, items: &[String]) {
        self.field(name, |value| {
            put_message(value, LIST, |list| {
                for item in items {
                    put_message(list, 1, |value| put_bytes(value, STRING, item.as_bytes()));
                }
            });
        });
    }

    pub(super) fn object(&mut self, name: &str, write: impl FnOnce(&mut StructWriter<'_>)) {
        self.field(name, |value| put_message(value, STRUCT, |object| write(&mut StructWriter(object))));
    }

    /// A field, with the `Value` that `write` writes.
    fn field(&mut self, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
        put_message(self.0, 1, |entry| {
            put_bytes(entry, 1, name.as_bytes());
            put_message(entry, 2, write);
        });
    }
}
