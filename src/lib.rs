//! Keystile answers Envoy's external authorization checks for API keys.
//!
//! Modules in reading order:
//!
//! - pure: [`credential`], [`record`], [`policy`], [`decision`] know no network, no clock, no metrics;
//! - logic: [`flight`] does shared work once, [`moment`] is the time that is passed in;
//! - adapters: [`store`] (memory, SQLite, Postgres);
//! - the house: [`cli`] has every command, [`config`] every setting, [`metrics`] every metric.

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
pub mod store;

pub mod cli;
pub mod config;
pub mod metrics;
pub mod serve;
pub mod telemetry;
