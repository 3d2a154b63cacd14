//! `keystile doctor`: says what will not work as its owner thinks. It changes nothing.

use anyhow::bail;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{
    database::{open_read_only, with_database_name},
    output::{Output, count as number_of},
};
use crate::{
    clock,
    config::{AccountLock, DatabaseOptions},
    findings::{Finding, Report},
};

/// What is examined.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Whether a locked account stops its API keys: `deny` or `ignore`.
    #[arg(long, env = "KEYSTILE_ACCOUNT_LOCK", default_value = "deny")]
    account_lock: AccountLock,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    database: DatabaseOptions,
}

/// The report, as programs read it.
#[derive(Debug, Serialize)]
struct DoctorReport {
    database: ExaminedDatabase,
    #[serde(flatten)]
    report: Report,
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

/// The width of the table where the terminal does not say its own.
const WIDTH: u16 = 120;

pub(super) async fn run(args: Doctor) -> anyhow::Result<()> {
    let Doctor { account_lock, output, database: options } = args;
    let database = open_read_only(&options)?.with_account_lock(account_lock);
    // A spinner is shown on terminals only.
    let spinner =
        ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {pos} rows examined")?);
    let inspected = database.inspect(clock::wall(), &|rows| spinner.set_position(rows)).await;
    spinner.finish_and_clear();
    let inspected = inspected.map_err(|error| with_database_name(&options, error.into()))?;
    let (keys, budgets) = (inspected.keys, inspected.budgets);
    let report = DoctorReport {
        database: ExaminedDatabase { kind: database.name(), keys, budgets },
        report: Report::new(inspected.findings),
    };
    let rows: Vec<_> = report.report.findings.iter().map(row).collect();
    output.report(&report, ["severity", "code", "where", "finding"], &rows, WIDTH)?;
    let Report { errors, warnings, notes, .. } = report.report;
    let [errors_found, warnings, notes] = [(errors, "error"), (warnings, "warning"), (notes, "note")]
        .map(|(n, noun)| number_of(n as u64, noun));
    let summary = format!("{errors_found}, {warnings} and {notes} in {}", number_of(keys, "key"));
    if errors > 0 {
        bail!("{summary}: each error denies or allows requests by mistake");
    }
    eprintln!("{summary}");
    Ok(())
}

/// A finding as a row of a table.
fn row(finding: &Finding) -> [String; 4] {
    let Finding { code, severity, message, location, count, examples, fix } = finding;
    let rows = count.map_or_else(String::new, |rows| format!("\n{}", number_of(rows, "row")));
    let more = if finding.count.is_some_and(|count| count > examples.len() as u64) { ", …" } else { "" };
    let ids = if examples.is_empty() { String::new() } else { format!("\nid {}{more}", examples.join(", ")) };
    [
        severity.to_string(),
        (*code).to_owned(),
        format!("{location}{rows}{ids}"),
        format!("{message}\nFix: {fix}"),
    ]
}
