//! The integration tests, one binary: a harness of real parts, and a file per theme.
#![expect(unreachable_pub, reason = "the harness is a library of this binary alone")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

mod answers;
mod cli;
mod descriptor;
mod docs;
mod explain;
mod gateway;
mod injector;
mod kubernetes;
mod policy;
mod postgres_tls;
mod probe;
mod serve;
mod store_contract;
mod store_failures;
