//! Postgres, through a pool of connections and one that listens.

use std::time::Duration;

mod access;
mod audit;
mod audit_check;
mod change_log;
mod connection;
mod connector;
mod error;
mod expressions;
mod grants;
mod hosts;
mod listen;
mod migrate;
mod pool;
mod readers;
mod server;
mod session_attrs;
mod settings;
mod statements;
mod tls;
mod triggers;

pub(super) use pool::PostgresPool;
pub use readers::{Confirmation, Confirmations};
pub(super) use statements::PostgresStatements;

/// How often the change log is read where the database does not notify.
pub(super) const POLL: Duration = Duration::from_millis(400);
