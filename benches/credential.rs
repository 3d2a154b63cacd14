//! The made-up keys of the benchmarks: the key of a number, so that nobody has to list them. The recorded
//! checks carry that of 0.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the rules of the library")]

/// Bytes in each of them, as many as in a key that Keystile makes.
const LEN: usize = 38;

/// The key with this number. Its first eight characters are its own.
pub(crate) fn credential(number: u32) -> String {
    let key = format!("ks_{number:05x}NobodysKeyOfTheBenchmarks00001");
    assert_eq!(key.len(), LEN, "there are 1,048,576 keys");
    key
}
