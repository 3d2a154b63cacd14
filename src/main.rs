//! keystile binary
fn main() {}
