//! The command line: one file for each command, and their shared parts.

use std::process::ExitCode;

use anyhow::Context;
use clap::{
    CommandFactory, FromArgMatches, Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};
use tracing::info;

use crate::{
    config::{InjectOptions, LogFormat, ManagementOptions, ServeOptions, redacted},
    credential::{brands::KeyBrand, generate},
    serve,
    store::{StoreError, TokenSecret},
    telemetry,
    version::version_and_commit,
};

mod argument;
mod audit;
mod backup;
mod completions;
mod database;
mod doctor;
mod explain;
mod inject;
mod invalidate;
mod keys;
mod management;
mod management_tokens;
mod migrate;
mod output;
mod patch_args;
mod probe;
mod startup;
mod users;
mod wait;

use startup::Startup;

/// API-key authorization service for Envoy.
#[derive(Debug, Parser)]
#[command(name = "keystile", version = version_and_commit(), max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    /// The first lines of the log.
    #[arg(skip)]
    startup: Startup,
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

    /// List who changed which key or user, and how; or follow the changes.
    Audit(Box<audit::Audit>),

    /// Copy a SQLite database that is in use into a new file.
    Backup(backup::Backup),

    /// Drop a prefix, or everything, from the memory of every running instance, and wait for their confirmation.
    Invalidate(invalidate::Invalidate),

    /// Create, list, change and revoke API keys.
    #[command(subcommand)]
    Keys(keys::Command),

    /// Create, list, change and disable the users that keys belong to.
    #[command(subcommand)]
    Users(users::Command),

    /// Serve the management API: keys and users over HTTP, for portals and other programs.
    Management(Box<ManagementOptions>),

    /// Create, list and revoke tokens of the management API.
    #[command(subcommand)]
    ManagementTokens(management_tokens::Command),

    /// Add Keystile to Kubernetes pods with its label or in an enabled namespace (admission webhook).
    Inject(Box<InjectOptions>),

    /// Ask a running `keystile serve` whether it is ready, for probes that run in its container.
    Probe(probe::Probe),

    /// Print the completions for a shell.
    Completions(completions::Completions),

    /// Write a manual page for each command into a folder.
    Man(completions::Man),
}

/// Flags whose values may hold secrets. Errors show at most scheme, host and port.
const SECRET_FLAGS: [&str; 4] = ["--database-url", "--change-feed-url", "--redis-url", "--cache-secret"];

/// What is shown instead of a secret.
const NOT_SHOWN: &str = "(not shown)";

/// An entry of these flags that is too long for it may be a whole API key.
const BRAND_FLAGS: [&str; 2] = ["--key-brands", "--durable-proofs"];

const DATABASE_HELP: &str = "check --database-url (KEYSTILE_DATABASE_URL): a server has to run at its host and port and \
                             know its user and password; the folder of a SQLite file has to exist and be writable";

impl Cli {
    /// Reads the command line and the environment. Ends the process where they are invalid.
    pub fn read() -> Self {
        refuse_secret_arguments();
        let mut command = without_empty_variables(Self::command());
        let parsed = command.try_get_matches_from_mut(std::env::args_os());
        let variables = || std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        let cli = parsed.and_then(|matches| {
            let startup = Startup::new(&Self::command(), &matches, variables());
            if let Some(error) = startup.misspelled_tls() {
                return Err(Self::command().error(ErrorKind::UnknownArgument, error));
            }
            Ok(Self { startup, ..Self::from_arg_matches(&matches)? })
        });
        cli.unwrap_or_else(|error| {
            let error = with_meant_flag(error.format(&mut command), &command);
            without_secrets(error).exit()
        })
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

/// Refuses a whole key or token as an argument of any command: an argument is in the shell's history, in the list of
/// processes, in errors, and maybe in the database's log.
fn refuse_secret_arguments() {
    let is_secret = |text: &str| generate::is_generated(text) || TokenSecret::parse(text).is_some();
    for argument in std::env::args_os().skip(1).filter_map(|argument| argument.into_string().ok()) {
        let value = argument.split_once('=').map_or(argument.as_str(), |(_, value)| value);
        if is_secret(value) || is_secret(&argument) {
            argument::wrong_usage(
                "an argument is a whole API key or token (not shown): give its id, prefix or name. Arguments are in the \
                 shell's history and in the list of processes; `keystile keys show -` reads a whole key from stdin",
            );
        }
    }
}

/// clap repeats what it refuses, and that may be a URL with a password, or an API key.
fn without_secrets(mut error: clap::Error) -> clap::Error {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let flag = text(ContextKind::InvalidArg).and_then(|argument| argument.split(' ').next());
    let value = text(ContextKind::InvalidValue);
    let may_be_key = flag.is_some_and(|flag| BRAND_FLAGS.contains(&flag))
        && value.is_some_and(|value| value.split(',').any(|entry| entry.len() > KeyBrand::MAX_LEN));
    if may_be_key || flag.is_some_and(|flag| SECRET_FLAGS.contains(&flag)) {
        let shown = value.and_then(redacted).unwrap_or_else(|| NOT_SHOWN.to_owned());
        error.insert(ContextKind::InvalidValue, ContextValue::String(shown));
    }
    let changed = error.context().filter_map(|(kind, value)| Some((kind, without_secret(value)?)));
    for (kind, value) in changed.collect::<Vec<_>>() {
        error.insert(kind, value);
    }
    error
}

/// Flags that people try, and the flags that they mean. clap finds only names that are spelled alike.
const MEANT: [(&str, &str); 12] = [
    ("--email", "--user"),
    ("--owner", "--user"),
    ("--user-id", "--user"),
    ("--json", "--output json"),
    ("--format", "--output json"),
    ("--db", "--database-url"),
    ("--database", "--database-url"),
    ("--url", "--database-url"),
    ("--expires", "--expires-at"),
    ("--ttl", "--expires-at"),
    ("--ip", "--allowed-ip"),
    ("--port", "--listen"),
];

/// Adds to an error about an unknown flag the flag that was meant, where the command has it.
fn with_meant_flag(mut error: clap::Error, root: &clap::Command) -> clap::Error {
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else { return error };
    let given: Vec<_> = std::env::args().skip(1).collect();
    let mut command = root;
    for word in &given {
        command = command.find_subcommand(word).unwrap_or(command);
    }
    let has = |flag: &str| {
        let name = flag.trim_start_matches("--").split(' ').next();
        command.get_arguments().any(|argument| argument.get_long() == name)
    };
    let meant = MEANT.iter().find(|(tried, meant)| tried == unknown && has(meant)).map(|(_, meant)| *meant);
    if let (ErrorKind::UnknownArgument, Some(meant)) = (error.kind(), meant) {
        let hint = format!("use '{meant}'");
        error.insert(ContextKind::SuggestedArg, ContextValue::None);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![hint.into()]));
    }
    error
}

/// What is shown instead, where the text holds a URL or an API key in any other place.
fn without_secret(value: &ContextValue) -> Option<ContextValue> {
    let is_secret = |text: &str| {
        text.contains("://") || generate::checksum_holds(text) || TokenSecret::parse(text).is_some()
    };
    let shown = |text: &str| match text.split_once('=') {
        Some((flag, value)) if flag.starts_with('-') => {
            format!("{flag}={}", redacted(value).unwrap_or_else(|| NOT_SHOWN.to_owned()))
        }
        _ => redacted(text).unwrap_or_else(|| NOT_SHOWN.to_owned()),
    };
    match value {
        ContextValue::String(text) if is_secret(text) => Some(ContextValue::String(shown(text))),
        ContextValue::Strings(texts) if texts.iter().any(|text| is_secret(text)) => {
            let texts = texts.iter().map(|text| if is_secret(text) { shown(text) } else { text.clone() });
            Some(ContextValue::Strings(texts.collect()))
        }
        ContextValue::StyledStr(text) if text.to_string().contains("://") => Some(ContextValue::None),
        ContextValue::StyledStrs(texts) if texts.iter().any(|text| text.to_string().contains("://")) => {
            Some(ContextValue::None)
        }
        _ => None,
    }
}

/// Runs a command to its end. Exit status 0 is success, 1 is failure.
///
/// Wrong usage has ended the process with status 2 before, while the arguments were parsed.
pub async fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Serve(options) => serve(*options, &cli.startup).await,
        Command::Explain(explain) => explain::run(*explain).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Migrate(args) => migrate::run(args).await,
        Command::Audit(args) => audit::run(*args).await,
        Command::Backup(args) => backup::run(args).await,
        Command::Invalidate(args) => invalidate::run(args).await,
        Command::Keys(command) => keys::run(command).await,
        Command::Users(command) => users::run(command).await,
        Command::Management(options) => management::run(*options, &cli.startup).await,
        Command::ManagementTokens(command) => management_tokens::run(command).await,
        Command::Inject(options) => inject::run(*options, &cli.startup).await,
        Command::Probe(probe) => probe::run(probe).await,
        Command::Completions(args) => completions::completions(args, Cli::command()),
        Command::Man(args) => completions::man(args, Cli::command()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if let Some(StoreError::Unavailable(_) | StoreError::Paused(_) | StoreError::Timeout(_)) =
                error.downcast_ref()
            {
                eprintln!("help: {DATABASE_HELP}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: ServeOptions, startup: &Startup) -> anyhow::Result<()> {
    let json = options.log_format == LogFormat::Json;
    let started = telemetry::start(&options.log, json);
    started.with_context(|| {
        format!("--log {}: write a level, or directives such as info,keystile=debug", options.log)
    })?;
    startup.log();
    serve::run(options, serve::stop_signal()?).await?;
    info!("stopped");
    Ok(())
}
