#![no_main]

#[path = "../facts/postgres_url.rs"]
mod facts;

libfuzzer_sys::fuzz_target!(|input: &str| facts::check(input));
