//! The columns of `api_keys` and `users` that operators manage, and their types.

use std::str::FromStr;

use serde_json::Value;

use crate::{
    credential::Prefix,
    record::{Expiry, KeyHash, endpoint::Endpoint, model::ModelPattern, network::Network},
    store::{
        SqlValue,
        decode::{
            timestamp::{self, write_timestamp},
            value::{self, Expectation},
        },
    },
};

const SCOPES: Expectation = "a list of single words, such as [\"chat\"]";
const MODELS: Expectation = "a list of models, such as [\"gpt-4*\"]";
const ENDPOINTS: Expectation = "a list of endpoints, such as [\"POST /v1/chat/*\"]";
const NETWORKS: Expectation = "a list of addresses and networks, such as [\"10.0.0.0/8\"]";

/// One column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) kind: ColumnKind,
}

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ColumnKind {
    Text,
    Boolean,
    Integer,
    /// An integer from 0.
    Count,
    /// An amount from 0.
    Cents,
    Number,
    Timestamp,
    /// A timestamp that may be infinite.
    Expiry,
    /// Any JSON.
    Json,
    /// A JSON list of strings.
    List,
    /// A JSON list of single words: upstreams get them with spaces between them.
    Scopes,
    /// A JSON list of strings and whole numbers.
    Names,
    /// A list of [`ModelPattern`].
    Models,
    /// A list of [`Endpoint`].
    Endpoints,
    /// A list of [`Network`].
    Networks,
    Prefix,
    /// A hash of a key, which is never shown.
    Hash,
}

const fn column(name: &'static str, kind: ColumnKind) -> Column {
    Column { name, kind }
}

/// `api_keys`, in the order in which it is shown.
pub(super) const API_KEYS: &[Column] = &[
    column("id", ColumnKind::Integer),
    column("key_prefix", ColumnKind::Prefix),
    column("key_hash", ColumnKind::Hash),
    column("name", ColumnKind::Text),
    column("description", ColumnKind::Text),
    column("user_id", ColumnKind::Integer),
    column("is_active", ColumnKind::Boolean),
    column("created_at", ColumnKind::Timestamp),
    column("updated_at", ColumnKind::Timestamp),
    column("expires_at", ColumnKind::Expiry),
    column("deleted_at", ColumnKind::Timestamp),
    column("deletion_reason", ColumnKind::Text),
    column("last_used_at", ColumnKind::Timestamp),
    column("scopes", ColumnKind::Scopes),
    column("tags", ColumnKind::List),
    column("permissions", ColumnKind::Json),
    column("allowed_models", ColumnKind::Models),
    column("allowed_endpoints", ColumnKind::Endpoints),
    column("allowed_ips", ColumnKind::Networks),
    column("allowed_chatbots", ColumnKind::Names),
    column("allowed_agents", ColumnKind::Names),
    column("allowed_extract_templates", ColumnKind::Names),
    column("rate_limit_per_minute", ColumnKind::Count),
    column("rate_limit_per_hour", ColumnKind::Count),
    column("rate_limit_per_day", ColumnKind::Count),
    column("is_unlimited", ColumnKind::Boolean),
    column("budget_limit_cents", ColumnKind::Cents),
    column("budget_type", ColumnKind::Text),
    column("total_requests", ColumnKind::Integer),
    column("total_tokens", ColumnKind::Integer),
    column("total_cost", ColumnKind::Number),
];

/// `users`. The role may be in `roles` instead.
pub(super) const USERS: &[Column] = &[
    column("id", ColumnKind::Integer),
    column("email", ColumnKind::Text),
    column("username", ColumnKind::Text),
    column("role", ColumnKind::Text),
    column("is_active", ColumnKind::Boolean),
    column("is_superuser", ColumnKind::Boolean),
    column("account_locked", ColumnKind::Boolean),
    column("account_locked_until", ColumnKind::Expiry),
    column("created_at", ColumnKind::Timestamp),
    column("updated_at", ColumnKind::Timestamp),
    column("last_login", ColumnKind::Timestamp),
];

/// The name of a row's version among its values.
pub(super) const VERSION: &str = "version";

/// Columns that use changes, or that are set with every change.
const NOT_VERSIONED: &[&str] =
    &["key_hash", "updated_at", "last_used_at", "last_login", "total_requests", "total_tokens", "total_cost"];

/// Whether a row's version depends on this column of `api_keys` or `users`.
pub(super) fn is_versioned(name: &str) -> bool {
    let is_known = API_KEYS.iter().chain(USERS).any(|column| column.name == name);
    is_known && !NOT_VERSIONED.contains(&name)
}

/// Why this column cannot be changed. None if it can be, or is unknown.
pub(super) fn read_only(table: &str, name: &str) -> Option<&'static str> {
    Some(match (table, name) {
        (_, "id") => "cannot be changed: it is what finds the row",
        ("api_keys", "key_prefix" | "key_hash") => {
            "cannot be changed: it belongs to the secret; create a new key"
        }
        ("api_keys", "user_id" | "user_email") => {
            "cannot be changed: a key stays with its user; create a new key for the other user"
        }
        ("api_keys", "deleted_at" | "deletion_reason") => {
            "cannot be changed: `keystile keys revoke` revokes a key, and a revoked key stays revoked"
        }
        ("api_keys", "last_used_at" | "total_requests" | "total_tokens" | "total_cost") => {
            "cannot be changed: it counts use"
        }
        ("users", "last_login") => "cannot be changed: it tells of use",
        ("users", "hashed_password") => "cannot be changed: Keystile knows no passwords",
        (_, "created_at" | "updated_at") => "cannot be changed: it is set with every change",
        (_, VERSION) => "cannot be changed: it follows from the other fields; --if-version compares it",
        _ => return None,
    })
}

impl ColumnKind {
    /// Whether it is a JSON list.
    pub(super) fn is_list(self) -> bool {
        matches!(
            self,
            Self::List | Self::Scopes | Self::Names | Self::Models | Self::Endpoints | Self::Networks
        )
    }

    /// Whether Keystile refuses to remove the value in this column.
    pub(super) fn needs_value(self, name: &str) -> bool {
        self == Self::Boolean && name != "is_unlimited" || matches!(name, "email" | "username")
    }

    /// What a value of this kind is.
    pub(super) fn expectation(self) -> Expectation {
        match self {
            Self::Text | Self::Prefix | Self::Hash => "a text",
            Self::Boolean => "true or false",
            Self::Integer => "a whole number",
            Self::Count => "a whole number from 0",
            Self::Cents => "a whole number of cents from 0",
            Self::Number => "a number",
            Self::Timestamp | Self::Expiry => "a timestamp, such as \"2026-12-31T23:59:59Z\"",
            Self::Json => "JSON",
            Self::List => "a list of texts",
            Self::Scopes => SCOPES,
            Self::Names => "a list of texts and whole numbers, such as [\"chat\", 7]",
            Self::Models => MODELS,
            Self::Endpoints => ENDPOINTS,
            Self::Networks => NETWORKS,
        }
    }

    /// Validates a value that is to be written, and returns its normal form.
    pub(super) fn normalize(self, text: &str) -> Result<SqlValue, Expectation> {
        Ok(Some(match self {
            Self::Text => text.to_owned(),
            Self::Boolean => if value::boolean(text)? { "1" } else { "0" }.to_owned(),
            Self::Integer => value::integer(text)?.to_string(),
            Self::Count => value::count(text)?.to_string(),
            Self::Cents => value::count(text).map_err(|_| self.expectation())?.to_string(),
            Self::Number => value::number(text)?.to_string(),
            Self::Timestamp => write_timestamp(timestamp::timestamp(text)?),
            Self::Expiry => match timestamp::expiry(text)? {
                Expiry::At(end) => write_timestamp(end),
                _ => text.to_ascii_lowercase(),
            },
            Self::Json => return Ok(value::json(text)?.map(|json| json.to_string())),
            Self::List => write_list(&value::list(text)?),
            Self::Scopes => {
                let scopes = value::list(text)?;
                let is_word = |scope: &String| !scope.is_empty() && !scope.contains(char::is_whitespace);
                if !scopes.iter().all(is_word) {
                    return Err(SCOPES);
                }
                write_list(&scopes)
            }
            Self::Names => write_list(&value::names(text)?),
            Self::Models => entries::<ModelPattern>(text, MODELS)?,
            Self::Endpoints => entries::<Endpoint>(text, ENDPOINTS)?,
            Self::Networks => entries::<Network>(text, NETWORKS)?,
            Self::Prefix => {
                Prefix::parse(text).map_err(|_| "the first 8 characters of the key, visible ASCII")?;
                text.to_owned()
            }
            Self::Hash => {
                text.parse::<KeyHash>().map_err(|_| KeyHash::EXPECTED)?;
                text.to_owned()
            }
        }))
    }
}

/// A list without invalid entries: a key with one would be denied.
fn entries<T: FromStr>(text: &str, expected: Expectation) -> Result<String, Expectation> {
    let list = value::list(text)?;
    if list.iter().all(|entry| entry.parse::<T>().is_ok()) { Ok(write_list(&list)) } else { Err(expected) }
}

/// A list as both databases store it.
pub(super) fn write_list(list: &[String]) -> String {
    Value::from(list).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_values_are_checked_and_made_uniform() {
        for (kind, text, normal) in [
            (ColumnKind::Boolean, "True", Some("1")),
            (ColumnKind::Count, "60", Some("60")),
            (ColumnKind::Expiry, "2026-01-02T03:04:05+01:00", Some("2026-01-02 02:04:05.000000")),
            (ColumnKind::Expiry, "Infinity", Some("infinity")),
            (ColumnKind::List, r#"[ "a", "b" ]"#, Some(r#"["a","b"]"#)),
            (ColumnKind::Names, r#"[ "a", 7 ]"#, Some(r#"["a","7"]"#)),
            (ColumnKind::Json, r#"{ "a": 1 }"#, Some(r#"{"a":1}"#)),
            (ColumnKind::Json, "null", None),
        ] {
            assert_eq!(kind.normalize(text), Ok(normal.map(str::to_owned)), "{text}");
        }
        for (kind, bad) in [
            (ColumnKind::Boolean, "yes"),
            (ColumnKind::Count, "-1"),
            (ColumnKind::Timestamp, "infinity"),
            (ColumnKind::List, "a,b"),
            (ColumnKind::Networks, r#"["10.0.0.0/8","10.0.0.256"]"#),
            (ColumnKind::Endpoints, r#"["v1"]"#),
            (ColumnKind::Models, r#"["a*b"]"#),
            (ColumnKind::Prefix, "short"),
            (ColumnKind::Hash, "$2b$15$"),
            (ColumnKind::Hash, "$sha256$"),
        ] {
            assert!(kind.normalize(bad).is_err(), "{bad}");
        }
    }
}
