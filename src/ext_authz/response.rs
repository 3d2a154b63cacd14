//! Writes the responses that Envoy acts on.
//!
//! Each response has parts that do not depend on the request. They are encoded once: at the start for an outcome, and at
//! the first use for a record. The fields of a message may stand in any order, and those of an inner message in several
//! pieces, so a response is these parts and what the request adds.
//!
//! Each response has an explicit status: Envoy takes a `CheckResponse` without one for an allow.

mod allow;
mod body;
mod deny;
mod header_option;
pub mod headers;
pub mod metadata;
mod rate_limit;
mod rotation;
mod struct_writer;
mod truncation;

pub(super) use allow::AllowResponses;
pub(super) use deny::DenyResponses;

#[cfg(test)]
mod tests;
