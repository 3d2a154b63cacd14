//! The output of commands: tables for people, JSON for programs.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use clap::{Args, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::{
    clock,
    store::{Difference, DisplayRow},
};

mod words;

pub(super) use words::count;
use words::relative;

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
                let mut table = empty_table();
                table.set_header(columns.iter().map(|(title, _)| *title));
                let now = clock::wall();
                for row in rows {
                    table.add_row(columns.iter().map(|(_, name)| {
                        let text = printable(&row.text(name));
                        if name.ends_with("_at") { relative(&text, now) } else { text }
                    }));
                }
                print_table(table)
            }
        }
    }

    /// Prints one row, with everything that is set.
    pub(super) fn row(self, row: &DisplayRow) -> anyhow::Result<()> {
        match self.output {
            OutputFormat::Json => json(row),
            OutputFormat::Table => {
                let mut table = empty_table();
                for (name, value) in row.iter().filter(|(_, value)| !value.is_empty()) {
                    table.add_row([name, &printable(&value)]);
                }
                print_table(table)
            }
        }
    }

    /// Prints what a change would do: one row for each field as a table.
    pub(super) fn differences(self, differences: &[Difference]) -> anyhow::Result<()> {
        match self.output {
            OutputFormat::Json => json(differences),
            OutputFormat::Table if differences.is_empty() => Ok(()),
            OutputFormat::Table => {
                let mut table = empty_table();
                table.set_header(["Field", "Before", "After"]);
                for Difference { field, before, after } in differences {
                    let [before, after] = [before, after].map(|value| match value {
                        Value::Null => "-".to_owned(),
                        Value::String(text) => printable(text),
                        other => printable(&other.to_string()),
                    });
                    table.add_row([*field, &before, &after]);
                }
                print_table(table)
            }
        }
    }

    /// Prints an explanation: one row for each step as a table, everything as JSON.
    pub(super) fn explanation(self, whole: &impl Serialize, steps: &[[String; 3]]) -> anyhow::Result<()> {
        match self.output {
            OutputFormat::Json => json(whole),
            OutputFormat::Table => {
                let mut table = empty_table();
                table.set_header(["check", "result", "looked at"]);
                for step in steps {
                    table.add_row(step.iter().map(|cell| printable(cell)));
                }
                print_table(table)
            }
        }
    }

    /// Prints a report: rows whose cells may have several lines as a table, everything as JSON. `width` is that of the
    /// table where there is no terminal.
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
                let mut table = empty_table();
                if table.width().is_none() {
                    table.set_width(width);
                }
                table.set_header(titles);
                for row in rows {
                    let lines = |cell: &String| cell.lines().map(printable).collect::<Vec<_>>().join("\n");
                    table.add_row(row.iter().map(lines));
                }
                print_table(table)
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

/// Prints a note to stderr, so that stdout holds only the output.
#[expect(clippy::unnecessary_wraps, reason = "stands where printing stands")]
fn note(text: &str) -> anyhow::Result<()> {
    eprintln!("{text}");
    Ok(())
}

/// A table without lines. On a terminal it is as wide as that; in a pipe each row is one line.
fn empty_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if let Some((terminal_size::Width(width), _)) = terminal_size::terminal_size_of(io::stdout())
        && io::stdout().is_terminal()
    {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    } else {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table
}

fn print_table(mut table: Table) -> anyhow::Result<()> {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines = table.to_string();
    // Cells are padded to the width of their column, also the last one.
    let lines: String = lines.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    print(&lines)
}

/// Names are other people's text: no escape sequence of theirs reaches a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
