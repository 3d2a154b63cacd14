#![no_main]

#[path = "../facts/timestamp.rs"]
mod facts;

libfuzzer_sys::fuzz_target!(|input: &str| facts::check(input));
