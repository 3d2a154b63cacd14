//! The columns of `api_keys` and `users` that Keystile knows, and what each holds.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

use super::cell::{self, Cell, Expected};
use crate::{
    credential::Prefix,
    record::{KeyHash, endpoint::Endpoint, model::ModelPattern, network::Network},
};

/// One column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Boolean,
    Integer,
    /// An integer from 0.
    Count,
    Number,
    Timestamp,
    /// A timestamp that may be infinite.
    Expiry,
    /// Any JSON.
    Json,
    /// A JSON list of strings.
    List,
    /// A JSON list of strings and whole numbers.
    Names,
    /// A list of [`ModelPattern`].
    Models,
    /// A list of [`Endpoint`].
    Endpoints,
    /// A list of [`Network`].
    Networks,
    Prefix,
    /// A bcrypt hash: read, never shown.
    Hash,
}

const fn column(name: &'static str, kind: Kind) -> Column {
    Column { name, kind }
}

/// `api_keys`, in the order in which people want to read it.
pub(crate) const API_KEYS: &[Column] = &[
    column("id", Kind::Integer),
    column("key_prefix", Kind::Prefix),
    column("key_hash", Kind::Hash),
    column("name", Kind::Text),
    column("description", Kind::Text),
    column("user_id", Kind::Integer),
    column("is_active", Kind::Boolean),
    column("created_at", Kind::Timestamp),
    column("updated_at", Kind::Timestamp),
    column("expires_at", Kind::Expiry),
    column("deleted_at", Kind::Timestamp),
    column("deletion_reason", Kind::Text),
    column("last_used_at", Kind::Timestamp),
    column("scopes", Kind::List),
    column("tags", Kind::List),
    column("permissions", Kind::Json),
    column("allowed_models", Kind::Models),
    column("allowed_endpoints", Kind::Endpoints),
    column("allowed_ips", Kind::Networks),
    column("allowed_chatbots", Kind::Names),
    column("allowed_agents", Kind::Names),
    column("rate_limit_per_minute", Kind::Count),
    column("rate_limit_per_hour", Kind::Count),
    column("rate_limit_per_day", Kind::Count),
    column("is_unlimited", Kind::Boolean),
    column("budget_limit_cents", Kind::Integer),
    column("budget_type", Kind::Text),
    column("total_requests", Kind::Integer),
    column("total_tokens", Kind::Integer),
    column("total_cost", Kind::Number),
];

/// `users`; `role` may stand in `roles` instead.
pub(crate) const USERS: &[Column] = &[
    column("id", Kind::Integer),
    column("email", Kind::Text),
    column("username", Kind::Text),
    column("role", Kind::Text),
    column("is_active", Kind::Boolean),
    column("is_superuser", Kind::Boolean),
    column("account_locked", Kind::Boolean),
    column("account_locked_until", Kind::Expiry),
    column("created_at", Kind::Timestamp),
    column("updated_at", Kind::Timestamp),
    column("last_login", Kind::Timestamp),
];

impl Kind {
    /// Checks a value that is to be written, strictly, and gives it its usual form.
    pub(crate) fn normal(self, text: &str) -> Result<Cell, Expected> {
        Ok(Some(match self {
            Self::Text => text.to_owned(),
            Self::Boolean => if cell::boolean(text)? { "1" } else { "0" }.to_owned(),
            Self::Integer => cell::integer(text)?.to_string(),
            Self::Count => cell::count(text)?.to_string(),
            Self::Number => cell::number(text)?.to_string(),
            Self::Timestamp => cell::write_timestamp(cell::timestamp(text)?),
            Self::Expiry => match cell::expiry(text)? {
                crate::record::Expiry::At(end) => cell::write_timestamp(end),
                _ => text.to_ascii_lowercase(),
            },
            Self::Json => return cell::json(text).map(|json| json.map(|json| json.to_string())),
            Self::List => write_list(&cell::list(text)?),
            Self::Names => write_list(&cell::names(text)?),
            Self::Models => entries::<ModelPattern>(text, "a list of models, such as [\"gpt-4*\"]")?,
            Self::Endpoints => {
                entries::<Endpoint>(text, "a list of endpoints, such as [\"POST /v1/chat/*\"]")?
            }
            Self::Networks => {
                entries::<Network>(text, "a list of addresses and networks, such as [\"10.0.0.0/8\"]")?
            }
            Self::Prefix => {
                Prefix::parse(text).map_err(|_| "the first 8 characters of the key, visible ASCII")?;
                text.to_owned()
            }
            Self::Hash => {
                text.parse::<KeyHash>()
                    .map_err(|_| "a bcrypt hash of the form $2a$, $2b$ or $2y$ with a cost of 4 to 14")?;
                text.to_owned()
            }
        }))
    }

    /// A value as JSON, for people; one that cannot be read is shown as the text that it is.
    fn show(self, cell: Cell) -> Value {
        let Some(text) = cell else { return Value::Null };
        let read = match self {
            Self::Boolean => cell::boolean(&text).ok().map(Value::from),
            Self::Integer | Self::Count => cell::integer(&text).ok().map(Value::from),
            Self::Number => cell::number(&text).ok().map(Value::from),
            Self::Timestamp | Self::Expiry => cell::timestamp(&text).ok().map(|time| {
                let form = time::format_description::well_known::Rfc3339;
                time.format(&form).map_or(Value::Null, Value::from)
            }),
            Self::Json | Self::List | Self::Names | Self::Models | Self::Endpoints | Self::Networks => {
                cell::json(&text).ok().map(Option::unwrap_or_default)
            }
            Self::Hash => Some(Value::Null),
            Self::Text | Self::Prefix => None,
        };
        read.unwrap_or(Value::String(text))
    }
}

/// A list of which every entry means something: a key with any other would be denied.
fn entries<T: FromStr>(text: &str, expected: Expected) -> Result<String, Expected> {
    let list = cell::list(text)?;
    match list.iter().all(|entry| entry.parse::<T>().is_ok()) {
        true => Ok(write_list(&list)),
        false => Err(expected),
    }
}

/// A list as both databases keep it.
pub(crate) fn write_list(list: &[String]) -> String {
    Value::from(list).to_string()
}

/// A row for people: columns and their values, in order. A hash is never among them.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed(Vec<(&'static str, Value)>);

impl Listed {
    /// Puts names and kinds to the cells of a row.
    pub(crate) fn new(columns: impl IntoIterator<Item = Column>, cells: Vec<Cell>) -> Self {
        let named = columns.into_iter().zip(cells);
        Self(named.map(|(column, cell)| (column.name, column.kind.show(cell))).collect())
    }

    /// The value in this column; `Null` where there is no such column.
    pub fn get(&self, column: &str) -> &Value {
        self.0.iter().find(|(name, _)| *name == column).map_or(&Value::Null, |(_, value)| value)
    }

    /// The value in this column, as people write it; empty for none.
    pub fn text(&self, column: &str) -> String {
        Shown(self.get(column)).to_string()
    }

    /// Columns and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.0.iter().map(|(name, value)| (*name, Shown(value).to_string()))
    }

    /// Adds a value at the end.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.0.push((name, value.into()));
        self
    }
}

impl Serialize for Listed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

struct Shown<'a>(&'a Value);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Null => Ok(()),
            Value::String(text) => f.write_str(text),
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    write!(f, "{}{}", if at == 0 { "" } else { ", " }, Shown(item))?;
                }
                Ok(())
            }
            other => write!(f, "{other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_values_are_checked_and_made_uniform() {
        for (kind, text, normal) in [
            (Kind::Boolean, "True", Some("1")),
            (Kind::Count, "60", Some("60")),
            (Kind::Expiry, "2026-01-02T03:04:05+01:00", Some("2026-01-02 02:04:05.000000")),
            (Kind::Expiry, "Infinity", Some("infinity")),
            (Kind::List, r#"[ "a", "b" ]"#, Some(r#"["a","b"]"#)),
            (Kind::Names, r#"[ "a", 7 ]"#, Some(r#"["a","7"]"#)),
            (Kind::Json, r#"{ "a": 1 }"#, Some(r#"{"a":1}"#)),
            (Kind::Json, "null", None),
        ] {
            assert_eq!(kind.normal(text), Ok(normal.map(str::to_owned)), "{text}");
        }
        for (kind, bad) in [
            (Kind::Boolean, "yes"),
            (Kind::Count, "-1"),
            (Kind::Timestamp, "infinity"),
            (Kind::List, "a,b"),
            (Kind::Networks, r#"["10.0.0.0/8","10.0.0.256"]"#),
            (Kind::Endpoints, r#"["v1"]"#),
            (Kind::Models, r#"["a*b"]"#),
            (Kind::Prefix, "short"),
            (Kind::Hash, "$2b$15$"),
        ] {
            assert!(kind.normal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hash_is_shown_as_nothing() {
        let cells = API_KEYS.iter().map(|_| Some("$2b$".to_owned())).collect();
        let listed = Listed::new(API_KEYS.iter().copied(), cells);
        assert_eq!(listed.get("key_hash"), &Value::Null);
        assert_eq!(listed.get("name"), "$2b$");
    }
}
