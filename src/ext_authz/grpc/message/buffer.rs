//! The bytes of a message as its frames arrive, kept in as little memory as they need.

use bytes::Bytes;
use http_body::Frame;
use tonic::Status;

use crate::{bounds::NoRoom, ext_authz::grpc::frame::PREFIX};

/// Largest `CheckRequest` that is read, in bytes: far above what Envoy is set to buffer.
pub const MAX_MESSAGE_SIZE: usize = 16 * 1024 * 1024;

/// Why a message is not received to its end, where a client may have caused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// It is larger than [`MAX_MESSAGE_SIZE`].
    TooLarge,
    /// It has to make room for others.
    NoRoom,
    /// The check's deadline has passed.
    Late,
}

/// Why no further frame is read.
pub(super) enum Stop {
    Rejected(Rejection),
    Broken(Status),
}

/// The part of a message that has arrived.
#[derive(Default)]
pub(super) struct MessageBuffer {
    /// The first frame. It usually holds the whole message.
    first: Bytes,
    /// The whole message, once there is a second frame.
    whole: Vec<u8>,
}

impl MessageBuffer {
    /// Adds a frame.
    pub(super) fn push<E: std::fmt::Display>(&mut self, frame: Result<Frame<Bytes>, E>) -> Result<(), Stop> {
        let frame = frame.map_err(|error| Stop::Broken(Status::cancelled(error.to_string())))?;
        let Ok(data) = frame.into_data() else { return Ok(()) };
        if self.bytes().is_empty() {
            self.first = data;
        } else {
            self.copy_first();
            self.reserve(data.len());
            self.whole.extend_from_slice(&data);
        }
        match self.announced() {
            Some(length) if length > MAX_MESSAGE_SIZE => Err(Stop::Rejected(Rejection::TooLarge)),
            Some(length) if self.bytes().len() > PREFIX + length => {
                Err(Stop::Broken(Status::internal("there is more than one message")))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The message, after the last frame.
    pub(super) fn finish(&mut self) -> Result<Bytes, Stop> {
        let Some(announced) = self.announced() else {
            return Err(Stop::Broken(Status::internal("the call has no message")));
        };
        if self.bytes()[0] != 0 {
            return Err(Stop::Broken(Status::unimplemented("compression was not agreed on")));
        }
        if self.bytes().len() != PREFIX + announced {
            return Err(Stop::Broken(Status::internal("the message is not as long as it says")));
        }
        let mut whole = if self.whole.is_empty() {
            std::mem::take(&mut self.first)
        } else {
            std::mem::take(&mut self.whole).into()
        };
        Ok(whole.split_off(PREFIX))
    }

    /// Memory that is held, in bytes.
    pub(super) fn capacity(&self) -> usize {
        self.whole.capacity()
    }

    /// Copies the first frame into memory of its own. It is a part of what was read from the connection, and keeps the
    /// rest of that in memory as well.
    pub(super) fn copy_first(&mut self) {
        let first = std::mem::take(&mut self.first);
        if !first.is_empty() {
            self.whole = first.to_vec();
        }
    }

    /// The length by the prefix, once that has arrived.
    fn announced(&self) -> Option<usize> {
        let [_, length @ ..] = self.bytes().first_chunk::<PREFIX>()?;
        Some(u32::from_be_bytes(*length) as usize)
    }

    fn bytes(&self) -> &[u8] {
        if self.whole.is_empty() { &self.first } else { &self.whole }
    }

    /// Makes room for so many more bytes: doubles, but never past the announced length.
    fn reserve(&mut self, more: usize) {
        let (length, capacity) = (self.whole.len(), self.whole.capacity());
        let needed = length + more;
        if needed > capacity {
            let announced = self.announced().map_or(needed, |announced| PREFIX + announced);
            let doubled = (2 * capacity).min(announced).max(needed);
            self.whole.reserve_exact(doubled - length);
        }
    }
}

impl From<NoRoom> for Stop {
    fn from(_: NoRoom) -> Self {
        Self::Rejected(Rejection::NoRoom)
    }
}
