//! `keystile keys revoke`

use anyhow::Context;
use clap::Args;

use super::bulk_revoke::{self, BulkArgs};
use crate::{
    cli::{
        argument::{refuse_whole_key, wrong_usage},
        database::{open, with_database_name},
        output::{Output, OutputFormat, json, print},
        wait::{WaitArgs, wait_for_instances_with_key},
    },
    config::DatabaseOptions,
    credential::Prefix,
};

#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// Id or prefix.
    #[arg(value_name = "ID|PREFIX")]
    key: Option<String>,
    #[command(flatten)]
    bulk: BulkArgs,
    /// Wait until every instance that listens to the database's changes has dropped the key, and fail if one has not.
    /// Instances that do not listen are unknown. With SQLite, wait half a second.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    wait_args: WaitArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    database: DatabaseOptions,
}

pub(super) async fn run(args: Revoke) -> anyhow::Result<()> {
    let Revoke { key, bulk, wait, wait_args, output, database } = args;
    let key = match (key, bulk.is_given()) {
        (Some(key), false) => key,
        (None, true) => {
            let wait = wait.then_some(wait_args);
            return bulk_revoke::run(bulk, wait, output, &database).await;
        }
        (Some(_), true) => wrong_usage("give either one key, or conditions such as --user, not both"),
        (None, false) => {
            wrong_usage("give the id or prefix of a key, or conditions: --user, --tag or --unused-since")
        }
    };
    refuse_whole_key(&key)?;
    let opened = open(&database)?;
    let key = opened.revoke_key(&key).await.map_err(|error| with_database_name(&database, error))?;
    if !wait && output.output == OutputFormat::Json {
        return json(&key);
    }
    let id = key.text("id");
    if output.output == OutputFormat::Table {
        print(&format!("revoked key {id} ({}) of {}\n", key.text("key_prefix"), key.text("user_email")))?;
    }
    if !wait {
        return Ok(());
    }
    let prefix = Prefix::parse(&key.text("key_prefix"));
    let prefix = prefix
        .context("the key is revoked; no credential can have its prefix, so no instance has it in memory")?;
    let waited = wait_for_instances_with_key(&opened, key, prefix, wait_args, output).await;
    waited.with_context(|| format!("key {id} is revoked, but not confirmed everywhere"))
}
