//! SQLite: one file, no server.

use std::time::Duration;

mod audit;
mod backup;
mod change_log;
mod file;
mod file_access;
mod migrate;
mod read_only;
mod statements;
mod triggers;

pub(super) use file::SqliteFile;
pub(super) use file_access::FileAccess;
pub(super) use statements::SqliteStatements;

/// How often the change log of a file is read. SQLite does not notify its readers.
pub(super) const SQLITE_POLL: Duration = Duration::from_millis(250);
