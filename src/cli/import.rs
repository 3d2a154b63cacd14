//! `keystile keys import`

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::{
    database::{open, with_database_name},
    output::{count, print},
};
use crate::{
    config::DatabaseOptions,
    store::{ImportError, ImportRow},
};

#[derive(Debug, Args)]
pub(super) struct Import {
    /// File of rows with the columns of `api_keys`, and `user_email` where there is no `user_id`; `-` is stdin.
    file: PathBuf,
    /// Form of the file; by its ending (.csv, .jsonl, .ndjson) when absent.
    #[arg(long)]
    format: Option<Format>,
    #[command(flatten)]
    database: DatabaseOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Comma-separated, with a header.
    Csv,
    /// One JSON object a line.
    Jsonl,
}

type Lines = BTreeMap<u64, String>;

/// Errors shown; a file that is wrong throughout needs no more to be recognised.
const SHOWN: usize = 20;

pub(super) async fn run(Import { file, format, database }: Import) -> anyhow::Result<()> {
    let format = format.or_else(|| by_ending(&file));
    let Some(format) = format else {
        bail!("{}: neither .csv, .jsonl nor .ndjson; say --format csv or --format jsonl", file.display());
    };
    let input: Box<dyn Read> = if file.as_os_str() == "-" {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(&file).with_context(|| file.display().to_string())?)
    };
    let (rows, errors) = match format {
        Format::Csv => read_csv(input),
        Format::Jsonl => read_json_lines(input),
    }
    .with_context(|| file.display().to_string())?;
    if !errors.is_empty() {
        return Err(refusal(&errors));
    }
    let bar = ProgressBar::new(rows.len() as u64)
        .with_style(ProgressStyle::with_template("{bar:40} {pos}/{len} keys, {eta} left")?);
    let progress = bar.clone();
    let imported =
        open(&database)?.import(rows, Box::new(move |done| progress.set_position(done as u64))).await;
    bar.finish_and_clear();
    match imported {
        Ok(imported) => print(&format!("imported {}\n", count(imported as u64, "key"))),
        Err(ImportError::Lines(errors)) => Err(refusal(&errors)),
        Err(ImportError::Manage(error)) => Err(with_database_name(&database, error)),
    }
}

fn by_ending(file: &Path) -> Option<Format> {
    match file.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "csv" => Some(Format::Csv),
        "jsonl" | "ndjson" => Some(Format::Jsonl),
        _ => None,
    }
}

/// Values are nowhere repeated: a shifted column puts hashes where names should be.
fn refusal(errors: &Lines) -> anyhow::Error {
    let mut text = String::from("nothing was imported:");
    for (line, error) in errors.iter().take(SHOWN) {
        text.push_str(&format!("\n  line {line}: {error}"));
    }
    if errors.len() > SHOWN {
        text.push_str(&format!("\n  and {} more", count((errors.len() - SHOWN) as u64, "line")));
    }
    anyhow::Error::msg(text)
}

fn read_csv(input: Box<dyn Read>) -> anyhow::Result<(Vec<ImportRow>, Lines)> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(input);
    let header: Vec<String> = reader.headers()?.iter().map(|name| name.trim().to_owned()).collect();
    for required in ["key_hash", "key_prefix"] {
        if !header.iter().any(|name| name == required) {
            bail!("line 1: the header lacks {required}; columns are named as in api_keys");
        }
    }
    if let Some(unknown) = header.iter().find(|name| !ImportRow::knows(name)) {
        bail!("line 1: api_keys has no column {unknown}; take it out of the file");
    }
    if let Some(twice) = (1..header.len()).find(|&at| header[..at].contains(&header[at])) {
        bail!("line 1: the column {} is there twice", header[twice]);
    }
    let (mut rows, mut errors) = (Vec::new(), Lines::new());
    for (at, record) in reader.records().enumerate() {
        let record = match record {
            Ok(record) => record,
            Err(error) if error.is_io_error() => return Err(error.into()),
            // csv's own text has the position and no content.
            Err(error) => {
                let line = error.position().map_or(at as u64 + 2, csv::Position::line);
                errors.insert(line, "not UTF-8".into());
                continue;
            }
        };
        let line = record.position().map_or(at as u64 + 2, csv::Position::line);
        if record.len() != header.len() {
            let text = format!("{} under a header of {}", count(record.len() as u64, "field"), header.len());
            errors.insert(line, text);
            continue;
        }
        let fields = header.iter().zip(&record).filter(|(_, text)| !text.is_empty());
        collect(
            ImportRow::parse(line, fields.map(|(name, text)| (name.clone(), text.to_owned()))),
            line,
            &mut rows,
            &mut errors,
        );
    }
    Ok((rows, errors))
}

fn read_json_lines(input: Box<dyn Read>) -> anyhow::Result<(Vec<ImportRow>, Lines)> {
    let (mut rows, mut errors) = (Vec::new(), Lines::new());
    for (at, text) in BufReader::new(input).split(b'\n').enumerate() {
        let (line, text) = (at as u64 + 1, text?);
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let row = parse_json(&text).and_then(|fields| ImportRow::parse(line, fields));
        collect(row, line, &mut rows, &mut errors);
    }
    Ok((rows, errors))
}

fn parse_json(text: &[u8]) -> Result<Vec<(String, String)>, String> {
    let Ok(Value::Object(object)) = serde_json::from_slice(text) else {
        return Err("not a JSON object".into());
    };
    if let Some(unknown) = object.keys().find(|name| !ImportRow::knows(name)) {
        return Err(format!("api_keys has no column {unknown}"));
    }
    let fields = object.into_iter().filter_map(|(name, value)| match value {
        Value::Null => None,
        Value::String(text) => Some((name, text)),
        other => Some((name, other.to_string())),
    });
    Ok(fields.collect())
}

fn collect(row: Result<ImportRow, String>, line: u64, rows: &mut Vec<ImportRow>, errors: &mut Lines) {
    match row {
        Ok(row) => rows.push(row),
        Err(error) => drop(errors.insert(line, error)),
    }
}
