//! The integration tests, one binary: a harness of real parts, and a file per theme.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::string_slice,
    reason = "the rules of the library"
)]
#![expect(unreachable_pub, reason = "the harness is a library of this binary alone")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

mod answers;
mod arrows;
mod audit;
mod backup;
mod bounds;
mod bulk_revocation;
mod change_feed;
mod cli;
mod cli_errors;
mod cli_terminal;
mod completions;
mod credential_output;
mod descriptor;
mod docs;
mod doctor;
mod durable_proofs;
mod envoy_doctor;
mod explain;
mod faults_named;
mod feed_faults;
mod feed_generator;
mod fence_schedules;
mod first_proofs;
mod foreign_credentials;
mod fuzz;
mod gateway;
mod generated_gateways;
mod grants;
mod header_bounds;
mod imports;
mod injector;
mod ipv6;
mod key_lists;
mod key_updates;
mod kubernetes;
mod language_models;
mod libpq_variables;
mod limits;
mod limits_envoy;
mod limits_gateway;
mod limits_outage;
mod limits_script;
mod management_api;
mod outages;
mod policy;
mod postgres_failover;
mod postgres_tls;
mod probe;
mod python_service;
mod redis;
mod redis_bounds;
mod redis_failover;
mod redis_kinds;
mod redis_tier;
mod release;
mod rotation;
mod secrets;
mod serve;
mod store_contract;
mod store_failures;
mod systemd;
mod tls;
mod torture;
mod unreadable;
mod usage;
mod versions;
