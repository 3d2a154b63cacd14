//! The integration tests, one binary: a harness of real parts, and a file per theme.
#![expect(unreachable_pub, reason = "the harness is a library of this binary alone")]

mod harness;

mod cli;
mod descriptor;
mod postgres_tls;
mod store_contract;
mod store_failures;
