//! `keystile doctor`: says what will not work as its owner thinks, in the database or in Envoy's configuration. It
//! changes nothing.

use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{
    database::{open_read_only, with_database_name},
    output::{Output, count as number_of},
};
use crate::{
    clock,
    config::{AccountLock, DatabaseOptions, duration_or_none},
    findings::Report,
};

mod admin_listener;
mod envoy;
mod report;

use envoy::EnvoySource;

/// What is examined.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Examine Envoy's configuration instead of the database: a file (YAML or JSON, such as Envoy is started with, or a
    /// saved /config_dump), `-` for stdin, or the URL of a running Envoy's admin listener, such as http://127.0.0.1:9901.
    #[arg(long, value_name = "FILE|URL")]
    envoy: Option<EnvoySource>,
    /// Deadline of a running Envoy's answers.
    #[arg(long, default_value = "10s", value_parser = duration_or_none, requires = "envoy", value_name = "DURATION")]
    envoy_timeout: Duration,
    /// Whether a locked account stops its API keys: `deny` or `ignore`.
    #[arg(long, env = "KEYSTILE_ACCOUNT_LOCK", default_value = "deny")]
    account_lock: AccountLock,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    database: DatabaseOptions,
}

/// What was examined.
#[derive(Debug, Serialize)]
struct Subject {
    database: ExaminedDatabase,
}

/// The database that was examined.
#[derive(Debug, Serialize)]
struct ExaminedDatabase {
    /// `postgres` or `sqlite`.
    kind: &'static str,
    /// The number of keys that were examined.
    keys: u64,
    /// The number of budgets that were examined.
    budgets: u64,
}

pub(super) async fn run(args: Doctor) -> anyhow::Result<()> {
    let Doctor { envoy, envoy_timeout, account_lock, output, database: options } = args;
    if let Some(source) = envoy {
        return envoy::run(&source, envoy_timeout, output).await;
    }
    let database = open_read_only(&options)?.with_account_lock(account_lock);
    // A spinner is shown on terminals only.
    let spinner =
        ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {pos} rows examined")?);
    let inspected = database.inspect(clock::wall(), &|rows| spinner.set_position(rows)).await;
    spinner.finish_and_clear();
    let inspected = inspected.map_err(|error| with_database_name(&options, error.into()))?;
    let (keys, budgets) = (inspected.keys, inspected.budgets);
    let subject = Subject { database: ExaminedDatabase { kind: database.name(), keys, budgets } };
    report::print(output, subject, Report::new(inspected.findings), &number_of(keys, "key"))
}
