//! `keystile invalidate`, and the waiting that `keystile keys revoke --wait` does alike.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use super::{
    keys::whole_key_is_no_argument,
    open,
    output::{Form, Output, json as print_json, print},
};
use crate::{config::DatabaseOptions, credential::Prefix, store::Database};

/// What every sidecar is to drop.
#[derive(Debug, Args)]
pub(super) struct Invalidate {
    /// The first 8 characters of the keys whose records are dropped.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    prefix: Option<String>,
    /// Drop everything.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    database: DatabaseOptions,
}

/// How long others are waited for.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Patience {
    /// How long to wait for the sidecars to confirm.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

pub(super) async fn run(args: Invalidate) -> anyhow::Result<()> {
    let Invalidate { prefix, all: _, patience, output, database } = args;
    let prefix = prefix.map(|prefix| {
        whole_key_is_no_argument(&prefix)?;
        Prefix::parse(&prefix).with_context(|| format!("{prefix} is no prefix of {} characters", Prefix::LEN))
    });
    let prefix = prefix.transpose()?;
    let opened = open(&database)?;
    wait_for_all(&opened, prefix, patience, output)
        .await
        .with_context(|| format!("--database-url {}", database.database_url))
}

/// Makes every sidecar drop a prefix, or everything; says who did, and fails if one did not.
pub(super) async fn wait_for_all(
    database: &Database,
    prefix: Option<Prefix>,
    patience: Patience,
    output: Output,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let confirmed = database.invalidate(prefix, patience.timeout).await?;
    let millis = started.elapsed().as_millis();
    match output.output {
        Form::Json => print_json(&json!({
            "dropped": confirmed.dropped,
            "silent": confirmed.silent,
            "milliseconds": u64::try_from(millis).unwrap_or(u64::MAX),
        }))?,
        Form::Table if database.is_file() => {
            print(
                "logged; a keystile that has this file open looks at it four times a second, and is not asked\n",
            )?;
        }
        Form::Table if confirmed.dropped.is_empty() && confirmed.silent.is_empty() => {
            print("logged; no sidecar listens to this database, so nobody was asked\n")?;
        }
        Form::Table => {
            print(&format!("dropped by {} sidecars within {millis} ms\n", confirmed.dropped.len()))?
        }
    }
    if !confirmed.silent.is_empty() {
        let silent: Vec<_> = confirmed.silent.into_iter().collect();
        bail!(
            "no word within {} from {}; they drop it within 30 s at the latest, unless they cannot reach the database",
            humantime::format_duration(patience.timeout),
            silent.join(", ")
        );
    }
    Ok(())
}
