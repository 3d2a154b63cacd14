//! `keystile invalidate`

use anyhow::Context;
use clap::{ArgGroup, Args};

use super::{
    argument::refuse_whole_key,
    database::open,
    output::Output,
    wait::{WaitArgs, wait_for_instances},
};
use crate::{config::DatabaseOptions, credential::Prefix};

/// The cached records that every instance drops.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true))]
pub(super) struct Invalidate {
    /// The first 8 characters of the keys whose records are dropped.
    #[arg(group = "what")]
    prefix: Option<String>,
    /// Drop everything.
    #[arg(long, group = "what")]
    all: bool,
    #[command(flatten)]
    wait_args: WaitArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    database: DatabaseOptions,
}

pub(super) async fn run(args: Invalidate) -> anyhow::Result<()> {
    let Invalidate { prefix, all: _, wait_args, output, database } = args;
    let prefix = prefix.map(|prefix| {
        refuse_whole_key(&prefix)?;
        Prefix::parse(&prefix)
            .with_context(|| format!("{prefix} is not the first {} characters of a key", Prefix::LEN))
    });
    let prefix = prefix.transpose()?;
    let opened = open(&database)?;
    wait_for_instances(&opened, prefix, wait_args, output)
        .await
        .with_context(|| format!("--database-url {}", database.database_url))
}
