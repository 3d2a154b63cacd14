//! Waits until every instance has dropped cached records: `invalidate`, and `keys revoke --wait`.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::json;

use super::output::{Output, OutputFormat, count, json as print_json, print};
use crate::{
    clock,
    config::duration_or_none,
    credential::Prefix,
    store::{Confirmation, Confirmations, Database, DisplayRow},
};

/// Deadline of the instances' confirmation.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct WaitArgs {
    /// Deadline of the instances' confirmation.
    #[arg(long, default_value = "5s", value_parser = duration_or_none)]
    timeout: Duration,
}

/// The same for a revoked key, which is printed with the result as JSON.
pub(super) async fn wait_for_instances_with_key(
    database: &Database,
    key: DisplayRow,
    prefix: Prefix,
    wait: WaitArgs,
    output: Output,
) -> anyhow::Result<()> {
    invalidate(database, Some(key), Some(prefix), wait, output).await
}

/// Makes every instance drop a prefix, or everything. Prints the instances that confirmed, and fails if one did not.
pub(super) async fn wait_for_instances(
    database: &Database,
    prefix: Option<Prefix>,
    wait: WaitArgs,
    output: Output,
) -> anyhow::Result<()> {
    invalidate(database, None, prefix, wait, output).await
}

async fn invalidate(
    database: &Database,
    key: Option<DisplayRow>,
    prefix: Option<Prefix>,
    wait: WaitArgs,
    output: Output,
) -> anyhow::Result<()> {
    let started = clock::monotonic();
    let confirmed = database.invalidate(prefix, wait.timeout).await?;
    let millis = started.elapsed().as_millis();
    match output.output {
        OutputFormat::Json => {
            let result = json!({
                "dropped": confirmed.dropped,
                "silent": confirmed.silent,
                "milliseconds": u64::try_from(millis).unwrap_or(u64::MAX),
            });
            match key {
                Some(key) => print_json(&key.with("invalidation", result))?,
                None => print_json(&result)?,
            }
        }
        OutputFormat::Table if database.is_file() => {
            print("logged; instances read the file four times a second and do not confirm\n")?;
        }
        OutputFormat::Table if confirmed.dropped.is_empty() => {}
        OutputFormat::Table => {
            let instances = count(confirmed.dropped.len() as u64, "instance");
            print(&format!("dropped by {instances} within {millis} ms\n"))?;
        }
    }
    require_all(database, confirmed, wait)
}

/// Waits until every instance has read the changes so far. Prints to stderr only: stdout is for a credential.
pub(super) async fn wait_behind_credential(
    database: &Database,
    prefix: Prefix,
    wait: WaitArgs,
) -> anyhow::Result<()> {
    let confirmed = database.invalidate(Some(prefix), wait.timeout).await?;
    if !confirmed.dropped.is_empty() {
        eprintln!("confirmed by {}", count(confirmed.dropped.len() as u64, "instance"));
    }
    require_all(database, confirmed, wait)
}

/// Fails if an instance has not confirmed.
fn require_all(database: &Database, confirmed: Confirmations, wait: WaitArgs) -> anyhow::Result<()> {
    match confirmed.state() {
        Confirmation::Complete => Ok(()),
        // Instances read a file four times a second, and do not confirm.
        Confirmation::Unknown if database.is_file() => Ok(()),
        Confirmation::Unknown => bail!(
            "logged, but no instance listens to this database, so none confirmed; check that the instances use it, \
             and that their change feed is up"
        ),
        Confirmation::Incomplete => {
            let silent: Vec<_> = confirmed.silent.into_iter().collect();
            bail!(
                "not confirmed within {} by {}; they drop it within 30 s unless they cannot reach the database",
                humantime::format_duration(wait.timeout),
                silent.join(", ")
            );
        }
    }
}
