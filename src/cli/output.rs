//! The output of commands: tables for people, JSON for programs.

use std::io::{self, Write};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::Value;

use crate::{
    clock,
    store::{Difference, DisplayRow},
};

mod style;
mod table;
mod words;

use style::printable;
use table::{Overflow, TextTable, terminal_width};
pub(super) use words::count;
use words::{relative, whole_seconds};

/// How a command answers.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Output {
    /// Format of the output on stdout.
    #[arg(long, short, env = "KEYSTILE_OUTPUT", default_value = "table", value_name = "FORM")]
    pub(super) output: OutputFormat,
}

/// The forms there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
}

impl Output {
    /// Prints rows, of which a table shows only some columns: pairs of title and name.
    pub(super) fn rows(
        self,
        rows: &[DisplayRow],
        columns: &[(&str, &str)],
        none: &str,
    ) -> anyhow::Result<()> {
        match self.output {
            OutputFormat::Json => json(rows),
            OutputFormat::Table if rows.is_empty() => note(none),
            OutputFormat::Table => {
                let titles: Vec<_> = columns.iter().map(|(title, _)| *title).collect();
                // Only texts that people chose are long.
                let is_whole =
                    |name: &str| name.ends_with("_at") || ["id", "key_prefix", "is_active"].contains(&name);
                let whole =
                    columns.iter().enumerate().filter(|(_, (_, name))| is_whole(name)).map(|(at, _)| at);
                let mut table = TextTable::new(&titles, Overflow::Truncate).with_whole_columns(whole);
                if let Some(state) = columns.iter().position(|(_, name)| *name == "is_active") {
                    table = table.with_states(state);
                }
                let (is_terminal, now) = (terminal_width().is_some(), clock::wall());
                for row in rows {
                    table.add(columns.iter().map(|(_, name)| match row.text(name) {
                        text if !name.ends_with("_at") => text,
                        time if is_terminal => relative(&time, now),
                        time => whole_seconds(&time),
                    }));
                }
                print(&table.text())
            }
        }
    }

    /// Prints one row, with everything that is set.
    pub(super) fn row(self, row: &DisplayRow) -> anyhow::Result<()> {
        match self.output {
            OutputFormat::Json => json(row),
            OutputFormat::Table => {
                let mut table = TextTable::new(&[], Overflow::Wrap);
                for (name, value) in row.iter().filter(|(_, value)| !value.is_empty()) {
                    let value = if name.ends_with("_at") { whole_seconds(&value) } else { value };
                    table.add([name.to_owned(), value]);
                }
                print(&table.text())
            }
        }
    }

    /// Prints what a change would do: one row for each field as a table.
    pub(super) fn differences(self, differences: &[Difference]) -> anyhow::Result<()> {
        match self.output {
            OutputFormat::Json => json(differences),
            OutputFormat::Table if differences.is_empty() => Ok(()),
            OutputFormat::Table => {
                let mut table = TextTable::new(&["Field", "Before", "After"], Overflow::Wrap);
                for Difference { field, before, after } in differences {
                    let [before, after] = [before, after].map(|value| match value {
                        Value::Null => "-".to_owned(),
                        Value::String(text) => text.clone(),
                        other => other.to_string(),
                    });
                    table.add([(*field).to_owned(), before, after]);
                }
                print(&table.text())
            }
        }
    }

    /// Prints an explanation: one row for each step as a table, everything as JSON.
    pub(super) fn explanation(self, whole: &impl Serialize, steps: &[[String; 3]]) -> anyhow::Result<()> {
        match self.output {
            OutputFormat::Json => json(whole),
            OutputFormat::Table => {
                let titles = ["step", "result", "detail"];
                let mut table =
                    TextTable::new(&titles, Overflow::Wrap).with_whole_columns([0, 1]).with_states(1);
                steps.iter().for_each(|step| table.add(step.clone()));
                print(&table.text())
            }
        }
    }

    /// Prints a report: rows whose cells may have several lines as a table, everything as JSON. `width` is that of the
    /// table where there is no terminal. The first column is a state.
    pub(super) fn report<const N: usize>(
        self,
        whole: &impl Serialize,
        titles: [&str; N],
        rows: &[[String; N]],
        width: u16,
    ) -> anyhow::Result<()> {
        match self.output {
            OutputFormat::Json => json(whole),
            OutputFormat::Table if rows.is_empty() => Ok(()),
            OutputFormat::Table => {
                let mut table = TextTable::new(&titles, Overflow::Wrap).with_states(0);
                rows.iter().for_each(|row| table.add(row.clone()));
                print(&table.text_arranged(width))
            }
        }
    }
}

/// Prints rows as one JSON array, as they come.
#[derive(Debug, Default)]
pub(super) struct JsonArray {
    has_items: bool,
}

impl JsonArray {
    pub(super) fn item(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(value).context("writing JSON")?;
        let start = if self.has_items { ",\n  " } else { "[\n  " };
        self.has_items = true;
        print(&format!("{start}{}", text.replace('\n', "\n  ")))
    }

    pub(super) fn end(self) -> anyhow::Result<()> {
        print(if self.has_items { "\n]\n" } else { "[]\n" })
    }
}

/// Prints to stdout. A reader that closes the pipe early, such as `head`, is no failure.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("writing to stdout"),
        _ => Ok(()),
    }
}

pub(super) fn json(value: &(impl Serialize + ?Sized)) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value).context("writing JSON")?;
    print(&format!("{text}\n"))
}

/// Prints one line for people.
pub(super) fn print_line(text: &str) -> anyhow::Result<()> {
    print(&format!("{}\n", printable(text)))
}

/// Prints one JSON value in one line.
pub(super) fn json_line(value: &(impl Serialize + ?Sized)) -> anyhow::Result<()> {
    let text = serde_json::to_string(value).context("writing JSON")?;
    print(&format!("{text}\n"))
}

/// Prints a note to stderr, so that stdout holds only the output.
#[expect(clippy::unnecessary_wraps, reason = "stands where printing stands")]
fn note(text: &str) -> anyhow::Result<()> {
    eprintln!("{text}");
    Ok(())
}
