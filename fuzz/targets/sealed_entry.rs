#![no_main]

#[path = "../facts/sealed_entry.rs"]
mod facts;

libfuzzer_sys::fuzz_target!(|input: &str| facts::check(input));
