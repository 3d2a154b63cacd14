//! Pages of a list of keys: a page starts after the last key of the one before, by sort value and id.

use std::{fmt, num::NonZeroUsize, str::FromStr};

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

use super::{DisplayRow, Result, key_filter::Conditions, needs_column};
use crate::store::{SqlValue, schema::Schema, statements::Statements};

/// The order of a list of keys. Keys without a value come last in both directions, and the id decides between equal
/// values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeySort {
    /// By `created_at`, newest first.
    #[default]
    Created,
    /// By `last_used_at`, latest first.
    LastUsed,
    /// By `expires_at`, soonest first.
    Expires,
    /// By `name`, byte for byte.
    Name,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PageRequest {
    /// The order.
    pub sort: KeySort,
    /// The other direction.
    pub reverse: bool,
    /// Maximum number of keys. None: all of them.
    pub limit: Option<NonZeroUsize>,
    /// Where the page before ended.
    pub after: Option<PageCursor>,
}

/// Keys, and where the next page starts.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyPage {
    /// The keys, in order.
    pub keys: Vec<DisplayRow>,
    /// The end of this page, if there are more keys.
    pub next: Option<PageCursor>,
}

/// The end of a page: opaque to callers, and of use for the same order only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageCursor {
    #[serde(rename = "s")]
    sort: KeySort,
    #[serde(rename = "r", default)]
    reverse: bool,
    #[serde(rename = "v")]
    value: SqlValue,
    #[serde(rename = "i")]
    id: i64,
}

impl fmt::Display for PageCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        f.write_str(&BASE64URL_NOPAD.encode(&json))
    }
}

impl FromStr for PageCursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let json = BASE64URL_NOPAD.decode(text.as_bytes()).ok();
        json.and_then(|json| serde_json::from_slice(&json).ok())
            .ok_or("is not a cursor: copy the one that the page before ended with")
    }
}

impl PageCursor {
    /// Whether it is of a page in this order.
    pub fn fits(&self, sort: KeySort, reverse: bool) -> bool {
        (self.sort, self.reverse) == (sort, reverse)
    }

    pub(super) fn new(page: &PageRequest, value: SqlValue, id: i64) -> Self {
        Self { sort: page.sort, reverse: page.reverse, value, id }
    }
}

/// An order in SQL.
pub(super) struct SortExpression {
    /// The value, or none where every value is NULL.
    value: Option<String>,
    kind: &'static str,
    id: String,
    is_ascending: bool,
}

impl SortExpression {
    pub(super) fn new(page: &PageRequest, schema: &Schema, statements: &dyn Statements) -> Result<Self> {
        let column = match page.sort {
            KeySort::Created => "created_at",
            KeySort::LastUsed => "last_used_at",
            KeySort::Expires => "expires_at",
            KeySort::Name => "name",
        };
        if page.sort != KeySort::Created {
            needs_column(schema, "api_keys", column)?;
        }
        let name = |column| format!("k.{}", schema.name("api_keys", column));
        let kind = |column| schema.kind("api_keys", column);
        let value = kind(column).map(|kind| match page.sort {
            KeySort::Name => statements.bytewise(&name(column)),
            _ => statements.instant(&name(column), kind),
        });
        Ok(Self {
            value,
            kind: if page.sort == KeySort::Name { "text" } else { statements.instant_kind() },
            id: statements.as_integer(&name("id"), kind("id").unwrap_or("bigint")),
            is_ascending: matches!(page.sort, KeySort::Expires | KeySort::Name) != page.reverse,
        })
    }

    /// The sort value as text, for the cursor.
    pub(super) fn selected(&self, statements: &dyn Statements) -> String {
        self.value.as_ref().map_or_else(|| "NULL".to_owned(), |value| statements.as_text(value, self.kind))
    }

    /// The ORDER BY clause.
    pub(super) fn order(&self) -> String {
        let direction = if self.is_ascending { "ASC" } else { "DESC" };
        let value = self.value.as_ref().map(|value| format!("{value} {direction} NULLS LAST, "));
        format!("ORDER BY {}{} {direction}", value.unwrap_or_default(), self.id)
    }

    /// Adds the condition: the row comes after the cursor.
    pub(super) fn add_after(
        &self,
        cursor: &PageCursor,
        conditions: &mut Conditions,
        statements: &dyn Statements,
    ) {
        let beyond = if self.is_ascending { ">" } else { "<" };
        let id = conditions.param(cursor.id.to_string());
        let later = format!("{} {beyond} CAST({} AS bigint)", self.id, statements.param(id, "text"));
        let after = match (&self.value, &cursor.value) {
            (None, _) => later,
            (Some(value), None) => format!("{value} IS NULL AND {later}"),
            (Some(value), Some(last)) => {
                let last = conditions.param(last);
                let last = statements.param(last, self.kind);
                format!("{value} {beyond} {last} OR ({value} = {last} AND {later}) OR {value} IS NULL")
            }
        };
        conditions.add(after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursor_reads_back_and_belongs_to_one_order() {
        let page = PageRequest { sort: KeySort::Name, reverse: true, ..PageRequest::default() };
        for value in [None, Some("a \u{e9}".to_owned())] {
            let cursor = PageCursor::new(&page, value, 7);
            assert_eq!(cursor.to_string().parse(), Ok(cursor.clone()));
            assert!(cursor.fits(KeySort::Name, true) && !cursor.fits(KeySort::Name, false));
        }
        for bad in ["", "7", "bm9wZQ", "eyJzIjoibmFtZSJ9"] {
            assert!(bad.parse::<PageCursor>().is_err(), "{bad}");
        }
    }
}
