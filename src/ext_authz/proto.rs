//! Protobuf by hand, where decoding or encoding a whole message would cost more than the rest of a check.

pub(super) mod check_request;
pub(super) mod reader;
pub(super) mod writer;
