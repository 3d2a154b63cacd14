//! The database of a command, and errors that name it.

use anyhow::Context;

use crate::{
    config::DatabaseOptions,
    metrics::Metrics,
    store::{Actor, Database, ManagementError},
    telemetry,
};

/// Opens the database of a command, whose changes are those of the system user. Warnings about its rows go to stderr.
///
/// # Errors
/// When the URL cannot be used.
pub(super) fn open(options: &DatabaseOptions) -> anyhow::Result<Database> {
    telemetry::start_for_commands();
    let metrics = Metrics::new().context("setting up metrics")?;
    Ok(Database::connect(options, &metrics)?.acting_as(system_user()))
}

/// The same, for a command that only reads: it writes nothing, and creates no file.
///
/// # Errors
/// As above.
pub(super) fn open_read_only(options: &DatabaseOptions) -> anyhow::Result<Database> {
    telemetry::start_for_commands();
    let metrics = Metrics::new().context("setting up metrics")?;
    Ok(Database::connect_read_only(options, &metrics)?)
}

/// The user who runs this command, on this host.
fn system_user() -> Actor {
    let id = rustix::process::getuid().as_raw();
    // Containers often run under an id without a name.
    let name = whoami::username().unwrap_or_else(|_| format!("uid {id}"));
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Actor::system_user(&name, &host)
}

/// Adds the database's name to its error. A refusal needs none.
pub(super) fn with_database_name(options: &DatabaseOptions, error: ManagementError) -> anyhow::Error {
    match error {
        ManagementError::Store(error) => {
            anyhow::Error::new(error).context(format!("--database-url {}", options.database_url))
        }
        ManagementError::Patch(_)
        | ManagementError::VersionMismatch { .. }
        | ManagementError::AlreadyDone
        | ManagementError::Refused(_) => anyhow::Error::msg(error.to_string()),
    }
}
