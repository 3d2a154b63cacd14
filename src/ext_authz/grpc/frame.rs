//! The frame of a gRPC message: whether it is compressed, and its length, stand before it.

use bytes::Bytes;

/// Length of what stands before a message.
pub(crate) const PREFIX: usize = 5;

/// The message that `write` writes, with its prefix. `expected` is its length, roughly.
pub(crate) fn framed(expected: usize, write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut message = Vec::with_capacity(PREFIX + expected);
    message.extend_from_slice(&[0; PREFIX]);
    write(&mut message);
    let written = u32::try_from(message.len() - PREFIX).unwrap_or(u32::MAX);
    message[1..PREFIX].copy_from_slice(&written.to_be_bytes());
    message.into()
}
