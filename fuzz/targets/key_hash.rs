#![no_main]

#[path = "../facts/key_hash.rs"]
mod facts;

libfuzzer_sys::fuzz_target!(|input: &str| facts::check(input));
