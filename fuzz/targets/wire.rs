//! The view of a message reads what the generated types read, and refuses what they refuse. The input is an encoded
//! `CheckRequest`, or bytes near one.

#![no_main]

use keystile::ext_authz::CheckRequestView;
use libfuzzer_sys::fuzz_target;

#[path = "../../src/ext_authz/proto/check_request/differential.rs"]
mod differential;

fuzz_target!(|bytes: &[u8]| differential::compare(bytes));
