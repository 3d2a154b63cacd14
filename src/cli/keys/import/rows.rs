//! Rows with the columns of `api_keys`: CSV and JSON lines.

use std::io::{BufRead, BufReader, Read};

use anyhow::bail;
use serde_json::Value;

use super::{contents::Contents, losses::shown_field};
use crate::store::ImportRow;

pub(super) fn read_csv(input: Box<dyn Read>) -> anyhow::Result<Contents> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(input);
    let header: Vec<String> = reader.headers()?.iter().map(|name| name.trim().to_owned()).collect();
    for required in ["key_hash", "key_prefix"] {
        if !header.iter().any(|name| name == required) {
            bail!("line 1: the header lacks {required}; columns are named as in api_keys");
        }
    }
    if let Some(unknown) = header.iter().find(|name| !ImportRow::knows(name)) {
        bail!("line 1: api_keys has no column {}; take it out of the file", shown_field(unknown));
    }
    if let Some(twice) = (1..header.len()).find(|&at| header[..at].contains(&header[at])) {
        bail!("line 1: the column {} is there twice", header[twice]);
    }
    let mut contents = Contents::default();
    for (at, record) in reader.records().enumerate() {
        let record = match record {
            Ok(record) => record,
            Err(error) if error.is_io_error() => return Err(error.into()),
            // csv's own text has the position and no content.
            Err(error) => {
                let line = error.position().map_or(at as u64 + 2, csv::Position::line);
                contents.errors.insert(line, "not UTF-8".into());
                continue;
            }
        };
        let line = record.position().map_or(at as u64 + 2, csv::Position::line);
        if record.len() != header.len() {
            let text = format!("{} fields under a header of {}", record.len(), header.len());
            contents.errors.insert(line, text);
            continue;
        }
        let fields = header.iter().zip(&record).filter(|(_, text)| !text.is_empty());
        let fields = fields.map(|(name, text)| (name.clone(), text.to_owned()));
        contents.add(ImportRow::parse(line, fields), line);
    }
    Ok(contents)
}

pub(super) fn read_json_lines(input: Box<dyn Read>) -> anyhow::Result<Contents> {
    let mut contents = Contents::default();
    for (at, text) in BufReader::new(input).split(b'\n').enumerate() {
        let (line, text) = (at as u64 + 1, text?);
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let row = parse_json(&text).and_then(|fields| ImportRow::parse(line, fields));
        contents.add(row, line);
    }
    Ok(contents)
}

fn parse_json(text: &[u8]) -> Result<Vec<(String, String)>, String> {
    let Ok(Value::Object(object)) = serde_json::from_slice(text) else {
        return Err("not a JSON object".into());
    };
    if let Some(unknown) = object.keys().find(|name| !ImportRow::knows(name)) {
        return Err(format!("api_keys has no column {}", shown_field(unknown)));
    }
    let fields = object.into_iter().filter_map(|(name, value)| match value {
        Value::Null => None,
        Value::String(text) => Some((name, text)),
        other => Some((name, other.to_string())),
    });
    Ok(fields.collect())
}
