//! Fields of a protobuf message (protobuf.dev/programming-guides/encoding), one after the other.

use super::{Malformed, Result};

/// The fields of a message that are left: their numbers and values.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

/// A value, by how it stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Eight bytes, four, or a group: nothing of ours is one.
    Other,
}

/// Groups within groups that are passed over: as many as the generated types allow.
const DEPTH: usize = 100;

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field(DEPTH);
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self, depth: usize) -> Result<(u32, Value<'a>)> {
        let key = u32::try_from(self.varint()?).map_err(|_| Malformed)?;
        let (number, kind) = (key >> 3, key & 7);
        if number == 0 {
            return Err(Malformed);
        }
        let value = match kind {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                Value::Bytes(self.take(length)?)
            }
            3 => self.pass_group(number, depth)?,
            5 => self.take(4).map(|_| Value::Other)?,
            _ => return Err(Malformed),
        };
        Ok((number, value))
    }

    /// Passes over everything to the end of a group.
    fn pass_group(&mut self, number: u32, depth: usize) -> Result<Value<'a>> {
        let depth = depth.checked_sub(1).ok_or(Malformed)?;
        loop {
            let before = self.0;
            let key = u32::try_from(self.varint()?).map_err(|_| Malformed)?;
            if key & 7 == 4 {
                return if key >> 3 == number { Ok(Value::Other) } else { Err(Malformed) };
            }
            self.0 = before;
            self.field(depth)?;
        }
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for (at, byte) in self.0.iter().take(10).enumerate() {
            // The tenth byte has room for one bit.
            if at == 9 && *byte > 1 {
                return Err(Malformed);
            }
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                self.0 = &self.0[at + 1..];
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }
}

impl<'a> Value<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed),
        }
    }

    pub(super) fn text(self) -> Result<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }

    /// As `int64` has it.
    pub(super) fn number(self) -> Result<i64> {
        match self {
            Self::Varint(number) => Ok(number.cast_signed()),
            _ => Err(Malformed),
        }
    }
}
