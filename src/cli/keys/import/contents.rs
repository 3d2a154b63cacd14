//! What a file has: keys, errors, and what cannot be carried over.

use std::collections::BTreeMap;

use time::OffsetDateTime;

use super::losses::Losses;
use crate::{
    credential::{Credential, Prefix},
    store::ImportRow,
};

/// Errors by the number of their line or key.
pub(super) type Lines = BTreeMap<u64, String>;

/// The keys of a file.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) rows: Vec<ImportRow>,
    pub(super) errors: Lines,
    /// What a number stands for, where it is no line.
    pub(super) places: BTreeMap<u64, String>,
    pub(super) losses: Losses,
}

/// What a file is read with.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadOptions {
    /// When the file was written: durations in it count from then.
    pub(super) written_at: OffsetDateTime,
    pub(super) allow_short_keys: bool,
}

/// Fewer characters leave too little that is secret, since the prefix is shown.
const SHORT: usize = 2 * Prefix::LEN;

impl Contents {
    pub(super) fn add(&mut self, row: Result<ImportRow, String>, line: u64) {
        match row {
            Ok(row) => self.rows.push(row),
            Err(error) => drop(self.errors.insert(line, error)),
        }
    }
}

/// Reads a whole key. The error repeats nothing of it.
pub(super) fn parse_secret(text: &str, options: ReadOptions) -> Result<Credential, String> {
    let secret =
        Credential::parse(text.as_bytes()).map_err(|error| format!("the key cannot be one here: {error}"))?;
    if secret.expose().len() < SHORT && !options.allow_short_keys {
        return Err(format!(
            "the key has fewer than {SHORT} characters, of which logs and lists show the first {}: replace it by a new \
             one, or give --allow-short-keys",
            Prefix::LEN
        ));
    }
    Ok(secret)
}
