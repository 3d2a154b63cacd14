//! Reads the fields of a protobuf message (protobuf.dev/programming-guides/encoding), one after the other.

/// The bytes are no `CheckRequest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed CheckRequest")]
pub struct MalformedMessage;

pub(super) type Result<T, E = MalformedMessage> = std::result::Result<T, E>;

/// The fields of a message that were not read yet: their numbers and values.
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
    /// How deep the next field may nest. At 0 there may be none.
    depth: usize,
}

/// A value, by its wire type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Eight bytes, four bytes, or a group. No field that is read has one of these.
    Other,
}

/// Nesting of messages and groups that the generated types allow.
const MAX_DEPTH: usize = 100;

impl<'a> Fields<'a> {
    /// The fields of a message inside so many others.
    pub(super) fn new(bytes: &'a [u8], level: usize) -> Self {
        Self { bytes, depth: MAX_DEPTH - level }
    }

    fn field(&mut self, depth: usize) -> Result<(u32, Value<'a>)> {
        let (number, kind) = self.key()?;
        let value = match kind {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| MalformedMessage)?;
                Value::Bytes(self.take(length)?)
            }
            3 => self.skip_group(number, depth)?,
            5 => self.take(4).map(|_| Value::Other)?,
            _ => return Err(MalformedMessage),
        };
        Ok((number, value))
    }

    /// The number of a field and its wire type.
    fn key(&mut self) -> Result<(u32, u32)> {
        let key = u32::try_from(self.varint()?).map_err(|_| MalformedMessage)?;
        let number = key >> 3;
        if number == 0 { Err(MalformedMessage) } else { Ok((number, key & 7)) }
    }

    fn skip_group(&mut self, number: u32, depth: usize) -> Result<Value<'a>> {
        const END: u32 = 4;
        loop {
            let before = self.bytes;
            let (inner, kind) = self.key()?;
            if kind == END {
                return if inner == number { Ok(Value::Other) } else { Err(MalformedMessage) };
            }
            if depth <= 1 {
                return Err(MalformedMessage);
            }
            self.bytes = before;
            self.field(depth - 1)?;
        }
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for (at, byte) in self.bytes.iter().take(10).enumerate() {
            // The tenth byte has room for one bit.
            if at == 9 && *byte > 1 {
                return Err(MalformedMessage);
            }
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                self.bytes = &self.bytes[at + 1..];
                return Ok(value);
            }
        }
        Err(MalformedMessage)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(length).ok_or(MalformedMessage)?;
        self.bytes = rest;
        Ok(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        let field = self.field(self.depth);
        if field.is_err() {
            self.bytes = &[];
        }
        Some(field)
    }
}

impl<'a> Value<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(MalformedMessage),
        }
    }

    pub(super) fn text(self) -> Result<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| MalformedMessage)
    }

    /// An `int64`.
    pub(super) fn number(self) -> Result<i64> {
        match self {
            Self::Varint(number) => Ok(number.cast_signed()),
            _ => Err(MalformedMessage),
        }
    }
}
