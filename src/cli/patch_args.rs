//! The flags that `keys update` and `users update` share.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value};

use super::{
    argument::wrong_usage,
    output::{Output, OutputFormat, json},
    wait::WaitArgs,
};
use crate::store::{Change, Patch, Resource, RowVersion};

#[derive(Debug, Args)]
pub(super) struct PatchArgs {
    /// File with a JSON merge patch (RFC 7386): an object of fields and their new values, in which null removes a value.
    /// `-` is stdin.
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
    /// Change nothing if the row's version, which `show` and `list` print in JSON, is another.
    #[arg(long, value_name = "VERSION")]
    pub(super) if_version: Option<RowVersion>,
    /// Print what would change, and change nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Wait until every instance that listens to the database's changes has dropped what it had in memory, and fail if
    /// one has not. Instances that do not listen are unknown. With SQLite, wait half a second.
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) wait: bool,
    #[command(flatten)]
    pub(super) wait_args: WaitArgs,
}

/// The largest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// Fields and their new values, each given once.
#[derive(Debug, Default)]
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// Sets a field, if there is a value.
    pub(super) fn set(&mut self, field: &str, value: Option<impl Into<Value>>) -> anyhow::Result<()> {
        let Some(value) = value else { return Ok(()) };
        if self.0.insert(field.to_owned(), value.into()).is_some() {
            bail!("{field}: is given twice; give it once, by a flag, by --clear or in the file");
        }
        Ok(())
    }

    /// Removes the values of these fields.
    pub(super) fn clear(&mut self, fields: &[String]) -> anyhow::Result<()> {
        fields.iter().try_for_each(|field| self.set(field, Some(Value::Null)))
    }
}

impl PatchArgs {
    /// The fields of the file, together with those of flags.
    pub(super) fn patch(&self, resource: Resource, mut fields: Fields) -> anyhow::Result<Patch> {
        if let Some(path) = &self.from_file {
            let name = || format!("--from-file {}", path.display());
            let text = read(path).with_context(name)?;
            let from_file = Patch::parse(resource, &text).with_context(name)?;
            for (field, value) in from_file.into_fields() {
                fields.set(&field, Some(value))?;
            }
        }
        Ok(Patch::new(resource, fields.0)?)
    }

    /// Ends the process if neither a flag nor the file says what to change.
    pub(super) fn require_change(&self, patch: &Patch) {
        if patch.is_empty() && self.from_file.is_none() {
            wrong_usage("say what to change: a flag such as --name, --clear or --from-file; see --help");
        }
    }

    /// Prints a change. `row` is what it is of, such as `key 7`.
    pub(super) fn print(&self, change: &Change, row: &str, output: Output) -> anyhow::Result<()> {
        let differences = change.differences();
        // Names are other people's text: no escape sequence of theirs reaches a terminal.
        let row: String = row.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        match (differences.is_empty(), self.dry_run) {
            (true, _) => eprintln!("{row} has these values already; nothing was written"),
            (false, true) => eprintln!("{row} would change; nothing was written"),
            (false, false) => eprintln!("updated {row}"),
        }
        if self.dry_run || output.output == OutputFormat::Table {
            return output.differences(&differences);
        }
        // Waiting prints the row with its result.
        if self.wait { Ok(()) } else { json(&change.after) }
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let input: Box<dyn Read> =
        if path.as_os_str() == "-" { Box::new(io::stdin()) } else { Box::new(File::open(path)?) };
    let mut text = Vec::new();
    input.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        bail!("is larger than 1 MiB");
    }
    Ok(text)
}

/// A field to clear, by its name or as a flag spells it.
pub(super) fn field(resource: Resource, text: &str) -> Result<String, String> {
    let name = text.trim_start_matches('-').replace('-', "_");
    let plural = format!("{name}s");
    let found = resource.fields().find(|field| *field == name || *field == plural);
    found
        .map(str::to_owned)
        .ok_or_else(|| format!("is none of {}", resource.fields().collect::<Vec<_>>().join(", ")))
}
