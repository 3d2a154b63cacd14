//! Keystile answers Envoy's external authorization checks for API keys.
//!
//! Modules in reading order:
//!
//! - pure: [`credential`], [`record`], [`attributes`], [`decision`], [`policy`] know no network, no
//!   clock, no metrics;
//! - logic: [`authorizer`] is the five steps of a check, [`verifier`] proves credentials, [`flight`]
//!   does shared work once, [`moment`] is the time that is passed in, [`health`] the state of the process;
//! - adapters: [`store`] (memory, SQLite, Postgres), [`ext_authz`] (gRPC), [`admin`] (HTTP), [`injector`]
//!   (Kubernetes' admission webhook);
//! - the house: [`serve`] wires it and drains it, [`cli`] has every command, [`config`] every setting,
//!   [`metrics`] every metric, [`telemetry`] the log.

pub mod attributes;
pub mod credential;
pub mod decision;
pub mod policy;
pub mod record;

pub mod authorizer;
pub mod flight;
pub mod health;
pub mod moment;
pub mod verifier;

pub mod admin;
pub mod ext_authz;
pub mod injector;
pub mod store;

pub mod cli;
pub mod config;
pub mod metrics;
pub mod serve;
pub mod telemetry;
