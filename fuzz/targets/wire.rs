//! Whatever bytes come in, what is read from them is what the generated types read. The input is an encoded
//! `CheckRequest`, more or less.

#![no_main]

use keystile::ext_authz::Check;
use libfuzzer_sys::fuzz_target;

#[path = "../../src/ext_authz/wire/agree.rs"]
mod agree;

fuzz_target!(|bytes: &[u8]| agree::agree(bytes));
