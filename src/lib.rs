//! Keystile answers Envoy's external authorization checks for API keys.
//!
//! Modules in reading order:
//!
//! - pure: [`credential`], [`record`], [`attributes`], [`proof`], [`decision`], [`policy`], [`limits`] know
//!   no network, no clock, no metrics;
//! - logic: [`authorizer`] is the five steps of a check, [`verifier`] proves credentials, [`revocation`] follows
//!   the log of changes and drops what changed, [`usage`] counts what was used, [`proof_writer`] stores proofs for the
//!   next start, [`resilience`] guards calls to dependencies, [`bounds`] keeps peers from holding too much, [`tls`]
//!   knows peers by their certificates, [`http_server`] serves HTTP, [`clock`]
//!   is the time that is passed in, [`core_dumps`] switches them off, [`dependencies`] what does not work and why, [`health`] the state of the process, [`findings`] what
//!   `keystile doctor` reports, [`explanation`] what `keystile explain` says;
//! - adapters: [`store`] (memory, Redis, SQLite, Postgres), [`limiter`] (memory, Redis), [`redis`], [`addresses`] of
//!   hosts, [`ext_authz`] (gRPC), [`admin`] (HTTP), [`injector`] (Kubernetes'
//!   admission webhook), [`management_api`] (HTTP), [`envoy_config`] (what `keystile doctor` reads of Envoy);
//! - the house: [`serve`] wires it and drains it, [`cli`] has every command, [`config`] every setting,
//!   [`metrics`] every metric, [`telemetry`] the log, [`version`] the version and commit.

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        clippy::string_slice,
        reason = "tests make their own times and texts"
    )
)]

pub mod attributes;
pub mod credential;
pub mod decision;
pub mod limits;
pub mod policy;
pub mod proof;
pub mod record;

pub mod addresses;
pub mod authorizer;
pub mod bounds;
mod cache;
pub mod clock;
pub mod core_dumps;
pub mod dependencies;
pub mod explanation;
pub mod findings;
pub mod health;
pub mod http_server;
pub mod proof_writer;
pub mod resilience;
pub mod revocation;
mod tcp_listener;
pub mod tls;
pub mod usage;
pub mod verifier;

pub mod admin;
pub mod envoy_config;
pub mod ext_authz;
pub mod injector;
pub mod limiter;
pub mod management_api;
pub mod redis;
pub mod store;

pub mod cli;
pub mod config;
pub mod metrics;
pub mod serve;
pub mod telemetry;
pub mod version;
