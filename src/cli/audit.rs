//! `keystile audit`

use std::time::Duration;

use clap::Args;
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    argument::{past, refuse_whole_key},
    database::{open, open_read_only, with_database_name},
    output::{Output, OutputFormat, json_line, print, print_line},
};
use crate::{
    config::DatabaseOptions,
    store::{AuditFilter, AuditPage, DisplayRow, ManagementError},
};

/// Which changes are listed.
#[derive(Debug, Args)]
pub(super) struct Audit {
    /// Only changes since this time, such as 2026-11-27T08:00:00Z, or in this time until now, such as 24h.
    #[arg(long, value_name = "TIME", value_parser = past)]
    since: Option<OffsetDateTime>,
    /// Only changes of the key with this id or prefix, and of its budgets.
    #[arg(long, value_name = "ID|PREFIX")]
    key: Option<String>,
    /// Only changes of the user with this id or email, and of that user's keys and budgets.
    #[arg(long, value_name = "ID|EMAIL")]
    user: Option<String>,
    /// Only changes by this system user, token or client, or by plain SQL of this database role.
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
    /// Maximum number of changes; the newest ones are listed.
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Then print each further change as it is committed, until interrupted.
    #[arg(long)]
    follow: bool,
    /// Delete the entries from before this time, or older than this, such as 400d. Needs the rights of the table's owner.
    #[arg(long, value_name = "TIME", value_parser = past,
        conflicts_with_all = ["since", "key", "user", "actor", "limit", "follow"])]
    prune_before: Option<OffsetDateTime>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    database: DatabaseOptions,
}

/// How often the log is read while it is followed.
const POLL: Duration = Duration::from_secs(1);

pub(super) async fn run(args: Audit) -> anyhow::Result<()> {
    let Audit { since, key, user, actor, limit, follow, prune_before, output, database: options } = args;
    let named = |error| with_database_name(&options, error);
    if let Some(before) = prune_before {
        let count = open(&options)?.prune_audit(before).await.map_err(named)?;
        return print(&format!("deleted {count} entries from before {}\n", shown(before)));
    }
    if let Some(key) = &key {
        refuse_whole_key(key)?;
    }
    let database = open_read_only(&options)?;
    let mut filter = AuditFilter { since, key, user, actor, limit: Some(limit) };
    let AuditPage { entries, mut position } = database.audit(&filter, None).await.map_err(named)?;
    for gap in database.audit_gaps().await.map_err(named)? {
        eprintln!("warning: the audit log does not have every change: {gap}; run `keystile migrate`");
    }
    if entries.is_empty() && !follow {
        eprintln!("no changes are recorded that match");
    }
    print_entries(output, &entries)?;
    if !follow {
        return Ok(());
    }
    filter.limit = None;
    let mut was_lost = false;
    loop {
        tokio::time::sleep(POLL).await;
        match database.audit(&filter, Some(&position)).await {
            Ok(page) => {
                (position, was_lost) = (page.position, false);
                print_entries(output, &page.entries)?;
            }
            // The position says what was missed.
            Err(ManagementError::Store(error)) => {
                if !was_lost {
                    eprintln!("warning: {error}; trying again");
                }
                was_lost = true;
            }
            Err(error) => return Err(named(error)),
        }
    }
}

/// One line for each entry.
fn print_entries(output: Output, entries: &[DisplayRow]) -> anyhow::Result<()> {
    for entry in entries {
        match output.output {
            OutputFormat::Json => json_line(entry)?,
            OutputFormat::Table => print_line(&line(entry))?,
        }
    }
    Ok(())
}

fn line(entry: &DisplayRow) -> String {
    let text = |column: &str| entry.text(column);
    let time = text("changed_at");
    let time = OffsetDateTime::parse(&time, &Rfc3339).map_or(time, shown);
    let label = text("label");
    let label = if label.is_empty() { label } else { format!(" ({label})") };
    format!(
        "{time}  {}  {} {} {}{label}  {}",
        who(entry),
        text("action"),
        text("table_name"),
        text("row_id"),
        changes(entry)
    )
}

/// To the second, which is what people compare.
fn shown(time: OffsetDateTime) -> String {
    let time = time.replace_nanosecond(0).unwrap_or(time);
    time.format(&Rfc3339).unwrap_or_default()
}

/// The actor and its host or address; for plain SQL, the database role, its application and its address.
fn who(entry: &DisplayRow) -> String {
    let parts = |columns: &[&str]| {
        let texts = columns.iter().map(|column| entry.text(column)).filter(|text| !text.is_empty());
        texts.collect::<Vec<_>>().join(", ")
    };
    match &*entry.text("source") {
        "sql" => {
            let who = parts(&["database_role", "application", "client_address"]);
            if who.is_empty() { "SQL".to_owned() } else { format!("SQL by {who}") }
        }
        source => format!("{source} {}", parts(&["actor", "origin"])),
    }
}

fn changes(entry: &DisplayRow) -> String {
    let (before, after) = (entry.get("before_values"), entry.get("after_values"));
    let side = |values: &Value, name: &str| values.get(name).map(Value::to_string);
    let names = [before, after].into_iter().filter_map(Value::as_object).flat_map(|values| values.keys());
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names.dedup();
    let change = |name: &String| match (side(before, name), side(after, name)) {
        (Some(before), Some(after)) => format!("{name}: {before} -> {after}"),
        (Some(value), None) | (None, Some(value)) => format!("{name}: {value}"),
        (None, None) => name.clone(),
    };
    names.into_iter().map(change).collect::<Vec<_>>().join(", ")
}
