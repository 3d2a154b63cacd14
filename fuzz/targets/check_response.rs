#![no_main]

#[path = "../facts/check_response.rs"]
mod facts;

libfuzzer_sys::fuzz_target!(|input: &str| facts::check(input));
