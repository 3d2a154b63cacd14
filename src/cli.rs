//! The command line: one file a command, and what they share.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::{
    config::DatabaseOptions,
    metrics::Metrics,
    store::{Database, ManageError},
};

mod import;
mod keys;
mod migrate;
mod output;
mod users;

/// API-key authorization service for Envoy.
#[derive(Debug, Parser)]
#[command(name = "keystile", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    // `Serve(ServeOptions)` comes first here, and in `run`.
    /// Create the tables where there are none.
    Migrate(DatabaseOptions),

    /// Make, see and revoke API keys.
    #[command(subcommand)]
    Keys(keys::Command),

    /// Make, see and disable the users whom keys belong to.
    #[command(subcommand)]
    Users(users::Command),
}

/// Runs a command to its end: status 0 when it is done, 1 when it failed.
///
/// Wrong usage ends with status 2 before it comes here, while the arguments are parsed.
pub async fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Migrate(database) => migrate::run(database).await,
        Command::Keys(command) => keys::run(command).await,
        Command::Users(command) => users::run(command).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The database that a command works on. What it has to say about rows goes to stderr.
fn open(options: &DatabaseOptions) -> anyhow::Result<Database> {
    let _ = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .try_init();
    let metrics = Metrics::new().context("setting up metrics")?;
    Ok(Database::connect(options, &metrics)?)
}

/// Adds the database's name to what went wrong with it; a refusal speaks for itself.
fn name(options: &DatabaseOptions, error: ManageError) -> anyhow::Error {
    match error {
        ManageError::Store(error) => {
            anyhow::Error::new(error).context(format!("--database-url {}", options.database_url))
        }
        ManageError::Refused(text) => anyhow::Error::msg(text),
    }
}
