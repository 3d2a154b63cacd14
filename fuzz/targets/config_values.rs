#![no_main]

#[path = "../facts/config_values.rs"]
mod facts;

libfuzzer_sys::fuzz_target!(|input: &str| facts::check(input));
