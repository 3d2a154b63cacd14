#![no_main]

#[path = "../facts/path.rs"]
mod facts;

libfuzzer_sys::fuzz_target!(|input: &str| facts::check(input));
