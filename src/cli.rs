//! The command line: one file a command, and what they share.

use std::process::ExitCode;

use anyhow::Context;
use clap::{
    Parser, Subcommand,
    error::{ContextKind, ContextValue},
};

use crate::{
    config::{InjectOptions, LogFormat, ServeOptions},
    serve, telemetry,
};

mod argument;
mod database;
mod explain;
mod import;
mod inject;
mod invalidate;
mod keys;
mod migrate;
mod output;
mod probe;
mod users;
mod wait;

/// API-key authorization service for Envoy.
#[derive(Debug, Parser)]
#[command(name = "keystile", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer Envoy's checks.
    Serve(Box<ServeOptions>),

    /// Say why a request with a key would be allowed or denied, check by check.
    Explain(Box<explain::Explain>),

    /// Create the tables where there are none, and let the database log what changes.
    Migrate(migrate::Migrate),

    /// Drop a prefix, or everything, from the memory of every running sidecar, and wait until those that listen have.
    Invalidate(invalidate::Invalidate),

    /// Make, see and revoke API keys.
    #[command(subcommand)]
    Keys(keys::Command),

    /// Make, see and disable the users whom keys belong to.
    #[command(subcommand)]
    Users(users::Command),

    /// Add Keystile to Kubernetes pods that ask for it (admission webhook).
    Inject(Box<InjectOptions>),

    /// Ask a running `keystile serve` whether it is ready; for probes that run in its container.
    Probe(probe::Probe),
}

/// Flags whose values are not shown, not even when they are wrong.
const SECRET_FLAGS: [&str; 4] = ["--database-url", "--change-feed-url", "--redis-url", "--cache-secret"];

impl Cli {
    /// Reads the command line and the environment; ends the process where they cannot be read.
    pub fn read() -> Self {
        Self::try_parse().unwrap_or_else(|error| without_secrets(error).exit())
    }
}

/// clap repeats a value that it refuses, and a refused database URL may hold a password.
fn without_secrets(mut error: clap::Error) -> clap::Error {
    let is_secret = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => {
            SECRET_FLAGS.iter().any(|flag| argument.split(' ').next() == Some(flag))
        }
        _ => false,
    };
    if is_secret {
        error.insert(ContextKind::InvalidValue, ContextValue::String("(not shown)".to_owned()));
    }
    error
}

/// Runs a command to its end: status 0 when it is done, 1 when it failed.
///
/// Wrong usage ends with status 2 before it comes here, while the arguments are parsed.
pub async fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Serve(options) => serve(*options).await,
        Command::Explain(explain) => explain::run(*explain).await,
        Command::Migrate(args) => migrate::run(args).await,
        Command::Invalidate(args) => invalidate::run(args).await,
        Command::Keys(command) => keys::run(command).await,
        Command::Users(command) => users::run(command).await,
        Command::Inject(options) => inject::run(*options).await,
        Command::Probe(probe) => probe::run(probe).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: ServeOptions) -> anyhow::Result<()> {
    let json = options.log_format == LogFormat::Json;
    telemetry::start(&options.log, json).with_context(|| format!("--log {}", options.log))?;
    serve::run(options, serve::stop_signal()?).await
}
