#![no_main]

#[path = "../facts/route_settings.rs"]
mod facts;

libfuzzer_sys::fuzz_target!(|input: &str| facts::check(input));
