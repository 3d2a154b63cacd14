//! The view of a message reads what the generated types read, and refuses what they refuse. The input is an encoded
//! `CheckRequest`, or bytes near one.

use keystile::ext_authz::CheckRequestView;

#[path = "../../src/ext_authz/proto/check_request/differential.rs"]
mod differential;

/// Fails if a fact does not hold for this input.
pub fn check(bytes: &[u8]) {
    differential::compare(bytes);
}
