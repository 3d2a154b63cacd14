//! A row as operators see it.

use std::fmt;

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

use super::columns::{Column, ColumnKind};
use crate::store::{
    Row, SqlValue,
    decode::{timestamp, value},
};

/// The columns of a row and their values, in order. A hash is never among them.
#[derive(Debug, Clone, PartialEq)]
pub struct DisplayRow(Vec<(&'static str, Value)>);

impl DisplayRow {
    /// Combines columns with the values of a row.
    pub(super) fn new(columns: impl IntoIterator<Item = Column>, values: Row) -> Self {
        let pairs = columns.into_iter().zip(values);
        Self(pairs.map(|(column, value)| (column.name, show(column.kind, value))).collect())
    }

    /// Names and values, as they are.
    pub(super) fn of<const N: usize>(values: [(&'static str, Value); N]) -> Self {
        Self(values.into())
    }

    /// The value in this column. `Null` where there is no such column.
    pub fn get(&self, column: &str) -> &Value {
        self.0.iter().find(|(name, _)| *name == column).map_or(&Value::Null, |(_, value)| value)
    }

    /// The value in this column as text. Empty for none.
    pub fn text(&self, column: &str) -> String {
        DisplayValue(self.get(column)).to_string()
    }

    /// Columns and their values as JSON, in order.
    pub fn values(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.0.iter().map(|(name, value)| (*name, value))
    }

    /// Columns and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.0.iter().map(|(name, value)| (*name, DisplayValue(value).to_string()))
    }

    /// The row without this column.
    pub(super) fn without(mut self, column: &str) -> Self {
        self.0.retain(|(name, _)| *name != column);
        self
    }

    /// Replaces the value in this column.
    pub(super) fn replace(&mut self, column: &str, value: Value) {
        if let Some((_, place)) = self.0.iter_mut().find(|(name, _)| *name == column) {
            *place = value;
        }
    }

    /// Adds a value at the end.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.0.push((name, value.into()));
        self
    }
}

impl Serialize for DisplayRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

struct DisplayValue<'a>(&'a Value);

impl fmt::Display for DisplayValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Null => Ok(()),
            Value::String(text) => f.write_str(text),
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    write!(f, "{}{}", if at == 0 { "" } else { ", " }, DisplayValue(item))?;
                }
                Ok(())
            }
            other => write!(f, "{other}"),
        }
    }
}

/// A value as JSON. An unreadable value is shown as its text.
pub(super) fn show(kind: ColumnKind, value: SqlValue) -> Value {
    let Some(text) = value else { return Value::Null };
    let read = match kind {
        ColumnKind::Boolean => value::boolean(&text).ok().map(Value::from),
        ColumnKind::Integer | ColumnKind::Count | ColumnKind::Cents => {
            value::integer(&text).ok().map(Value::from)
        }
        ColumnKind::Number => value::number(&text).ok().map(Value::from),
        ColumnKind::Timestamp | ColumnKind::Expiry => timestamp::timestamp(&text).ok().map(|time| {
            let form = time::format_description::well_known::Rfc3339;
            time.format(&form).map_or(Value::Null, Value::from)
        }),
        ColumnKind::Json
        | ColumnKind::List
        | ColumnKind::Scopes
        | ColumnKind::Names
        | ColumnKind::Models
        | ColumnKind::Endpoints
        | ColumnKind::Networks => value::json(&text).ok().map(Option::unwrap_or_default),
        ColumnKind::Hash => Some(Value::Null),
        ColumnKind::Text | ColumnKind::Prefix => None,
    };
    read.unwrap_or(Value::String(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::management::columns::API_KEYS;

    #[test]
    fn hash_is_shown_as_nothing() {
        let values = API_KEYS.iter().map(|_| Some("$2b$".to_owned())).collect();
        let listed = DisplayRow::new(API_KEYS.iter().copied(), values);
        assert_eq!(listed.get("key_hash"), &Value::Null);
        assert_eq!(listed.get("name"), "$2b$");
    }
}
