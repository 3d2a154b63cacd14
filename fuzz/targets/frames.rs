#![no_main]

#[path = "../facts/frames.rs"]
mod facts;

libfuzzer_sys::fuzz_target!(|input: &[u8]| facts::check(input));
