//! Rows for tests.

use super::{COLUMNS, SqlValue};
use crate::{credential::Prefix, record::fixtures};

/// A row that decodes, with some columns (`users.` where they are a user's) changed.
pub(crate) fn row_with(changes: &[(&str, Option<&str>)]) -> Vec<SqlValue> {
    let base = [
        ("id", "7"),
        ("key_prefix", &fixtures::CREDENTIAL[..Prefix::LEN]),
        ("key_hash", fixtures::HASH),
        ("is_active", "true"),
        ("users.id", "42"),
        ("users.is_active", "1"),
    ];
    let value = |name: &str| match changes.iter().find(|(changed, _)| *changed == name) {
        Some((_, value)) => value.map(str::to_owned),
        None => base.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()),
    };
    COLUMNS
        .iter()
        .map(|(table, column)| match *table {
            "users" => value(&format!("users.{column}")),
            _ => value(column),
        })
        .collect()
}
