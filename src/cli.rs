//! The command line: one file for each command, and their shared parts.

use std::process::ExitCode;

use anyhow::Context;
use clap::{
    CommandFactory, FromArgMatches, Parser, Subcommand,
    error::{ContextKind, ContextValue},
};

use crate::{
    config::{InjectOptions, LogFormat, ServeOptions, redacted},
    serve,
    store::StoreError,
    telemetry,
};

mod argument;
mod database;
mod doctor;
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

    /// Explain, check by check, why a request with a key would be allowed or denied.
    Explain(Box<explain::Explain>),

    /// Look at every row of the database, and report what will not work as its owner thinks. Changes nothing, and fails if
    /// something denies or allows requests by mistake.
    Doctor(doctor::Doctor),

    /// Create missing tables, and install the log of changes in the database.
    Migrate(migrate::Migrate),

    /// Drop a prefix, or everything, from the memory of every running instance, and wait for their confirmation.
    Invalidate(invalidate::Invalidate),

    /// Create, list and revoke API keys.
    #[command(subcommand)]
    Keys(keys::Command),

    /// Create, list and disable the users that keys belong to.
    #[command(subcommand)]
    Users(users::Command),

    /// Add Keystile to Kubernetes pods with its label or in an enabled namespace (admission webhook).
    Inject(Box<InjectOptions>),

    /// Ask a running `keystile serve` whether it is ready, for probes that run in its container.
    Probe(probe::Probe),
}

/// Flags whose values may hold secrets. Errors show at most scheme, host and port.
const SECRET_FLAGS: [&str; 4] = ["--database-url", "--change-feed-url", "--redis-url", "--cache-secret"];

const DATABASE_HELP: &str = "check --database-url (KEYSTILE_DATABASE_URL): a server has to run at its host and port and \
                             know its user and password; the folder of a SQLite file has to exist and be writable";

impl Cli {
    /// Reads the command line and the environment. Ends the process where they are invalid.
    pub fn read() -> Self {
        let mut command = without_empty_variables(Self::command());
        let parsed = command.try_get_matches_from_mut(std::env::args_os());
        let cli = parsed.and_then(|matches| Self::from_arg_matches(&matches));
        cli.unwrap_or_else(|error| without_secrets(error.format(&mut command)).exit())
    }
}

/// An empty variable counts as unset, so that a template can leave a setting out. Not so for TLS: without a CA, for
/// example, mutual TLS would be off.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|argument| {
        let is_empty = argument.get_env().is_some_and(|name| {
            let is_tls = name.to_str().is_some_and(|name| name.contains("_TLS_"));
            !is_tls && std::env::var_os(name).is_some_and(|value| value.is_empty())
        });
        if is_empty { argument.env(None) } else { argument }
    });
    command.mut_subcommands(without_empty_variables)
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
        let shown = match error.get(ContextKind::InvalidValue) {
            Some(ContextValue::String(value)) => redacted(value),
            _ => None,
        };
        let shown = shown.unwrap_or_else(|| "(not shown)".to_owned());
        error.insert(ContextKind::InvalidValue, ContextValue::String(shown));
    }
    error
}

/// Runs a command to its end. Exit status 0 is success, 1 is failure.
///
/// Wrong usage has ended the process with status 2 before, while the arguments were parsed.
pub async fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Serve(options) => serve(*options).await,
        Command::Explain(explain) => explain::run(*explain).await,
        Command::Doctor(args) => doctor::run(args).await,
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
            if let Some(StoreError::Unavailable(_) | StoreError::Timeout(_)) = error.downcast_ref() {
                eprintln!("help: {DATABASE_HELP}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: ServeOptions) -> anyhow::Result<()> {
    let json = options.log_format == LogFormat::Json;
    let started = telemetry::start(&options.log, json);
    started.with_context(|| {
        format!("--log {}: write a level, or directives such as info,keystile=debug", options.log)
    })?;
    serve::run(options, serve::stop_signal()?).await
}
