//! The output of all doctors: a table for people, JSON for programs.

use anyhow::bail;
use serde::Serialize;

use crate::{
    cli::output::{Output, count as number_of},
    findings::{Finding, Report},
};

/// The width of the table where the terminal does not say its own.
const WIDTH: u16 = 120;

/// A report, as programs read it: what was examined, and what was found.
#[derive(Debug, Serialize)]
struct Examined<T> {
    #[serde(flatten)]
    subject: T,
    #[serde(flatten)]
    report: Report,
}

/// Prints a report, and a summary to stderr that ends with what was examined.
///
/// # Errors
/// Where a finding is an error.
pub(super) fn print(
    output: Output,
    subject: impl Serialize,
    report: Report,
    examined: &str,
) -> anyhow::Result<()> {
    let rows: Vec<_> = report.findings.iter().map(row).collect();
    let whole = Examined { subject, report };
    output.report(&whole, ["severity", "code", "where", "finding"], &rows, WIDTH)?;
    let Report { errors, warnings, notes, .. } = whole.report;
    let [errors_found, warnings, notes] = [(errors, "error"), (warnings, "warning"), (notes, "note")]
        .map(|(n, noun)| number_of(n as u64, noun));
    let summary = format!("{errors_found}, {warnings} and {notes} in {examined}");
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
