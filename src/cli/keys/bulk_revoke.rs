//! `keystile keys revoke` with conditions: every key that they select, all of them or none.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{Args, builder::NonEmptyStringValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use time::OffsetDateTime;

use super::list::COLUMNS;
use crate::{
    cli::{
        argument::past,
        database::{open, open_read_only, with_database_name},
        output::{Output, OutputFormat, count, json as print_json, print},
        wait::{WaitArgs, wait_for_instances},
    },
    clock,
    config::DatabaseOptions,
    store::{BulkRevocation, KeyFilter, PageRequest},
};

/// Conditions on the keys to revoke. Those that are given must all hold.
#[derive(Debug, Args)]
pub(super) struct BulkArgs {
    /// Revoke every active key of the user with this id or email.
    #[arg(long, value_name = "ID|EMAIL", value_parser = NonEmptyStringValueParser::new(), help_heading = "Many keys")]
    user: Option<String>,
    /// Revoke every active key with this tag. Repeatable: keys with all of these tags.
    #[arg(long = "tag", value_name = "TAG", value_parser = NonEmptyStringValueParser::new(), help_heading = "Many keys")]
    tags: Vec<String>,
    /// Revoke every active key that was not used since then, such as 90d or 2026-01-01T00:00:00Z. A key that was never
    /// used is as old as its row. At least an hour ago, since uses are written with a delay.
    #[arg(long, value_name = "TIME", value_parser = unused_since, help_heading = "Many keys")]
    unused_since: Option<OffsetDateTime>,
    /// Do not ask before many keys are revoked.
    #[arg(long, short, help_heading = "Many keys")]
    yes: bool,
    /// List the keys that would be revoked, and change nothing.
    #[arg(long, help_heading = "Many keys")]
    dry_run: bool,
}

/// Uses are written every 5 minutes at most, and later while the database is busy.
const MIN_UNUSED: Duration = Duration::from_secs(60 * 60);

impl BulkArgs {
    /// Whether there is any flag for many keys.
    pub(super) fn is_given(&self) -> bool {
        self.user.is_some()
            || !self.tags.is_empty()
            || self.unused_since.is_some()
            || self.yes
            || self.dry_run
    }

    fn filter(&self) -> KeyFilter {
        KeyFilter {
            user: self.user.clone(),
            tags: self.tags.clone(),
            unused_since: self.unused_since,
            ..KeyFilter::default()
        }
    }
}

pub(super) async fn run(
    args: BulkArgs,
    wait: Option<WaitArgs>,
    output: Output,
    database: &DatabaseOptions,
) -> anyhow::Result<()> {
    let filter = args.filter();
    if !filter.is_narrow() {
        bail!("say which keys: --user, --tag or --unused-since");
    }
    let named = |error| with_database_name(database, error);
    if args.dry_run {
        let keys = open_read_only(database)?.list_keys(&filter, &PageRequest::default()).await;
        let keys = keys.map_err(named)?.keys;
        eprintln!("would revoke {}", count(keys.len() as u64, "key"));
        return if keys.is_empty() && output.output == OutputFormat::Table {
            Ok(())
        } else {
            output.rows(&keys, COLUMNS, "")
        };
    }
    let opened = open(database)?;
    let selected = opened.key_ids(&filter).await.map_err(named)?;
    if !selected.is_empty() && !args.yes {
        confirm(selected.len())?;
    }
    let bar = ProgressBar::new(selected.len() as u64)
        .with_style(ProgressStyle::with_template("{bar:40} {pos}/{len} keys, {eta} left")?);
    let progress = bar.clone();
    let revoked = opened
        .revoke_keys(&filter, &selected, Box::new(move |done| progress.set_position(done as u64)))
        .await;
    bar.finish_and_clear();
    let BulkRevocation { keys, prefix } = revoked.map_err(named)?;
    let revoked = count(keys.len() as u64, "key");
    if keys.len() < selected.len() {
        let others = count((selected.len() - keys.len()) as u64, "key");
        eprintln!("{others} no longer met the conditions, and stayed as they were");
    }
    match output.output {
        OutputFormat::Table => print(&format!("revoked {revoked}\n"))?,
        OutputFormat::Json if wait.is_some() => eprintln!("revoked {revoked}"),
        OutputFormat::Json => {
            let ids: Vec<_> = keys.iter().map(|key| key.0).collect();
            print_json(&json!({ "revoked": ids.len(), "keys": ids }))?;
        }
    }
    let Some(wait) = wait.filter(|_| !keys.is_empty()) else { return Ok(()) };
    let prefix = prefix.context(
        "the keys are revoked; no credential can have their prefixes, so no instance has them in memory",
    )?;
    // An instance that has read this later entry of the log has read those of all keys.
    let waited = wait_for_instances(&opened, Some(prefix), wait, output).await;
    waited.with_context(|| format!("{revoked} are revoked, but not confirmed everywhere"))
}

/// Asks on a terminal. A script has to say `--yes`.
fn confirm(keys: usize) -> anyhow::Result<()> {
    let keys = count(keys as u64, "key");
    if !io::stdin().is_terminal() {
        bail!(
            "{keys} would be revoked, and stdin is no terminal to ask on; --yes revokes them, --dry-run lists them"
        );
    }
    eprint!("Revoke {keys}? [y/N] ");
    io::stderr().flush().context("writing to stderr")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("reading stdin")?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    bail!("nothing was revoked")
}

fn unused_since(text: &str) -> Result<OffsetDateTime, String> {
    let since = past(text)?;
    if clock::wall() - since < MIN_UNUSED {
        return Err(
            "is less than an hour ago; uses are written with a delay, so keys in use would be revoked".into(),
        );
    }
    Ok(since)
}
