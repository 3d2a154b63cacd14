#![no_main]

#[path = "../facts/import_line.rs"]
mod facts;

libfuzzer_sys::fuzz_target!(|input: &str| facts::check(input));
