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
    store::RevokedKeys,
};

#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// Id or prefix.
    #[arg(value_name = "ID|PREFIX")]
    key: Option<String>,
    /// Revoke this key only. The keys that it was rotated from or to continue to work.
    #[arg(long, requires = "key")]
    only: bool,
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
    let Revoke { key, only, bulk, wait, wait_args, output, database } = args;
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
    let revoked = opened.revoke_key(&key, only).await;
    let RevokedKeys { key, others } = revoked.map_err(|error| with_database_name(&database, error))?;
    let id = key.text("id");
    if output.output == OutputFormat::Table {
        for key in others.iter().chain([&key]) {
            let (id, prefix, user) = (key.text("id"), key.text("key_prefix"), key.text("user_email"));
            print(&format!("revoked key {id} ({prefix}) of {user}\n"))?;
        }
    }
    let ids: Vec<_> = others.iter().map(|other| other.get("id").clone()).collect();
    let key = if ids.is_empty() { key } else { key.with("also_revoked", ids) };
    if !wait {
        return if output.output == OutputFormat::Json { json(&key) } else { Ok(()) };
    }
    let prefix = Prefix::parse(&key.text("key_prefix"));
    let prefix = prefix
        .context("the key is revoked; no credential can have its prefix, so no instance has it in memory")?;
    // An instance that confirms this change has read the earlier ones, of the other keys as well.
    let waited = wait_for_instances_with_key(&opened, key, prefix, wait_args, output).await;
    waited.with_context(|| format!("key {id} is revoked, but not confirmed everywhere"))
}
