#![no_main]

#[path = "../facts/admission_review.rs"]
mod facts;

libfuzzer_sys::fuzz_target!(|input: &[u8]| facts::check(input));
