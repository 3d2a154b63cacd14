#![no_main]

#[path = "../facts/check_request.rs"]
mod facts;

libfuzzer_sys::fuzz_target!(|input: &[u8]| facts::check(input));
