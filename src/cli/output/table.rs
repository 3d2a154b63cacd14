//! Tables: for the width of the terminal, or plain in a pipe.

use std::io::{self, IsTerminal};

use comfy_table::{ColumnConstraint, ContentArrangement, Row, Table, presets};

use super::style::{finished, painted, printable};

/// How a table on a terminal treats cells that are too wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overflow {
    /// Each row is one line, and what does not fit ends with an ellipsis.
    Truncate,
    /// Cells have as many lines as they need.
    Wrap,
}

/// Rows without lines between them.
#[derive(Debug)]
pub(super) struct TextTable {
    titles: Vec<String>,
    rows: Vec<Vec<String>>,
    overflow: Overflow,
    /// The columns that are never shortened.
    whole: Vec<usize>,
    /// The columns that show states.
    states: Vec<usize>,
}

impl TextTable {
    /// An empty table. Without titles, it has no first row.
    pub(super) fn new(titles: &[&str], overflow: Overflow) -> Self {
        let titles = titles.iter().map(|title| (*title).to_owned()).collect();
        Self { titles, rows: Vec::new(), overflow, whole: vec![0], states: Vec::new() }
    }

    /// Never shortens these columns.
    pub(super) fn with_whole_columns(mut self, whole: impl IntoIterator<Item = usize>) -> Self {
        self.whole = whole.into_iter().collect();
        self
    }

    /// Colours the states in this column.
    pub(super) fn with_states(mut self, column: usize) -> Self {
        self.states.push(column);
        self
    }

    /// Adds a row. A cell may have several lines.
    pub(super) fn add(&mut self, cells: impl IntoIterator<Item = String>) {
        let lines = |cell: String| cell.lines().map(printable).collect::<Vec<_>>().join("\n");
        self.rows.push(cells.into_iter().map(lines).collect());
    }

    /// Its text: as wide as the terminal, or with one line for each row and tabs between its cells.
    pub(super) fn text(&self) -> String {
        terminal_width().map_or_else(|| self.plain(), |width| self.arranged(width))
    }

    /// Its text in this width where there is no terminal.
    pub(super) fn text_arranged(&self, width: u16) -> String {
        self.arranged(terminal_width().unwrap_or(width))
    }

    fn plain(&self) -> String {
        let titles = Some(&self.titles).filter(|titles| !titles.is_empty());
        let line = |cells: &Vec<String>| format!("{}\n", cells.join("\t").replace('\n', " "));
        titles.into_iter().chain(&self.rows).map(line).collect()
    }

    fn arranged(&self, width: u16) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        // Spaces at the end of a line are removed below, but count for its width.
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width.saturating_add(GAP));
        table.set_truncation_indicator("…");
        if !self.titles.is_empty() {
            table.set_header(&self.titles);
        }
        for cells in &self.rows {
            let state = |at: usize, cell: &String| {
                if self.states.contains(&at) { painted(cell) } else { cell.clone() }
            };
            let mut row: Row =
                cells.iter().enumerate().map(|(at, cell)| state(at, cell)).collect::<Vec<_>>().into();
            if self.overflow == Overflow::Truncate {
                row.max_height(1);
            }
            table.add_row(row);
        }
        for (at, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, GAP));
            if self.whole.contains(&at) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        // Cells are padded to the width of their column, also the last one.
        let lines = table.to_string();
        finished(&lines.lines().map(|line| format!("{}\n", line.trim_end())).collect::<String>())
    }
}

/// Spaces between two columns.
const GAP: u16 = 2;

/// The width of the terminal. None where stdout is none.
pub(super) fn terminal_width() -> Option<u16> {
    if !io::stdout().is_terminal() {
        return None;
    }
    terminal_size::terminal_size_of(io::stdout())
        .map(|(terminal_size::Width(width), _)| width)
        .filter(|width| *width > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> TextTable {
        let titles = ["ID", "Prefix", "Name", "User", "Active", "Created", "Expires", "Last used"];
        let mut table =
            TextTable::new(&titles, Overflow::Truncate).with_whole_columns([0, 1, 4, 5, 6, 7]).with_states(4);
        let name = "a name that is rather long for one column";
        let email = "somebody.with.a.long.name@department.example.com";
        for id in ["1", "4711"] {
            let cells = [id, "ks_abcde", name, email, "true", "412d ago", "in 23h", "59m ago"];
            table.add(cells.map(str::to_owned));
        }
        table
    }

    #[test]
    fn lines_fit_the_terminal_and_ids_stay_whole() {
        for width in [76, 80, 100, 120] {
            let text = keys().arranged(width);
            let lines: Vec<_> = text.lines().collect();
            assert_eq!(lines.len(), 3, "{text}");
            for line in &lines {
                assert!(line.chars().count() <= usize::from(width), "{width}: {line}");
            }
            assert!(lines[2].starts_with("4711  ks_abcde  ") && lines[2].contains('…'), "{text}");
        }
        assert!(!keys().arranged(300).contains('…'));
    }

    #[test]
    fn text_that_matters_is_wrapped_and_not_cut() {
        let mut table =
            TextTable::new(&["step", "result", "detail"], Overflow::Wrap).with_whole_columns([0, 1]);
        let detail =
            "request: POST /v1/chat/completions; allowed_endpoints: POST /v1/embeddings, GET /v1/models";
        table.add(["endpoint", "deny: endpoint_not_allowed", detail].map(str::to_owned));
        let text = table.arranged(80);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert_eq!(text.split_whitespace().collect::<String>(), {
            let words = format!("step result detail endpoint deny: endpoint_not_allowed {detail}");
            words.split_whitespace().collect::<String>()
        });
    }

    #[test]
    fn pipe_gets_every_cell_whole_between_tabs() {
        let text = keys().plain();
        let rows: Vec<Vec<_>> = text.lines().map(|line| line.split('\t').collect()).collect();
        assert!(rows.iter().all(|row| row.len() == 8), "{text}");
        assert_eq!(rows[1][3], "somebody.with.a.long.name@department.example.com");
    }
}
