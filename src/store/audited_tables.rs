//! The tables whose changes are audited, and the columns that the audit log shows.

use super::{
    schema::Schema,
    watched_tables::{WatchedColumn, read_columns},
};

/// A table whose rows are audited.
pub(crate) struct AuditedTable {
    pub(crate) name: &'static str,
    /// The columns whose values are recorded, as far as the table has them.
    pub(crate) columns: Vec<WatchedColumn>,
    /// A column of which only the fact is recorded that it changed.
    pub(crate) secret: Option<WatchedColumn>,
    /// The column by which people know a row.
    label: Option<&'static str>,
    /// The column with the id of the key that a row concerns.
    key_id: Option<&'static str>,
    /// The column with the id of the user whom a row concerns.
    user_id: Option<&'static str>,
}

/// The columns of a row that say what it is.
pub(crate) struct RowReferences<'a> {
    pub(crate) id: WatchedColumn,
    pub(crate) label: Option<WatchedColumn>,
    pub(crate) key_id: Option<WatchedColumn>,
    pub(crate) user_id: Option<WatchedColumn>,
    pub(crate) table: &'a str,
}

/// The audit log.
pub(crate) const AUDIT: &str = "keystile_audit";

/// What is recorded of a secret column: before a change, and after.
pub(crate) const SECRET: [&str; 2] = ["(not shown)", "(another, not shown)"];

/// Columns that operators manage and decisions do not read.
const MANAGED: &[(&str, &str)] = &[("api_keys", "description"), ("api_keys", "deletion_reason")];

/// Columns that are read and not audited: those that name the row, those that change with every request, and the hash.
const UNAUDITED: &[&str] = &["id", "key_hash", "created_at", "total_cost", "current_usage_cents"];

/// The tokens of the management API, and the columns that are recorded, as far as the table has them.
const TOKENS: (&str, &[&str]) =
    ("keystile_management_tokens", &["name", "scope", "user_id", "template", "expires_at", "revoked_at"]);

/// The tables of this database that are audited.
pub(crate) fn audited_tables(schema: &Schema) -> Vec<AuditedTable> {
    let audited = |(name, read): (&'static str, Vec<&'static str>)| {
        let managed = MANAGED.iter().filter(|(table, _)| *table == name).map(|(_, column)| *column);
        let columns = read.into_iter().filter(|column| !UNAUDITED.contains(column)).chain(managed);
        let label = match name {
            "api_keys" => Some("key_prefix"),
            "users" => ["email", "username"].into_iter().find(|column| schema.has(name, column)),
            "roles" | "keystile_management_tokens" => Some("name"),
            _ => None,
        };
        let (key_id, user_id) = match name {
            "api_keys" => (Some("id"), Some("user_id")),
            "users" => (None, Some("id")),
            "budgets" => (Some("api_key_id"), Some("user_id")),
            "keystile_management_tokens" => (None, Some("user_id")),
            _ => (None, None),
        };
        AuditedTable {
            name,
            columns: columns.filter_map(|column| named(schema, name, column)).collect(),
            secret: named(schema, name, "key_hash"),
            label,
            key_id,
            user_id,
        }
    };
    let (tokens, columns) = TOKENS;
    let tokens = schema.has(tokens, "id").then(|| (tokens, columns.to_vec()));
    // A rotation is recorded by the rows of its keys. Its own tables have no id to name a row by.
    let with_id = |(table, _): &(&str, Vec<&str>)| schema.has(table, "id");
    let tables = read_columns(schema).into_iter().chain(tokens).filter(with_id).map(audited);
    tables.filter(|table| table.spellings().next().is_some()).collect()
}

fn named(schema: &Schema, table: &'static str, column: &'static str) -> Option<WatchedColumn> {
    let spelling = schema.spelling(table, column)?.to_owned();
    Some(WatchedColumn { name: column, spelling, sql: schema.name(table, column) })
}

impl AuditedTable {
    /// The columns that say what a row is.
    pub(crate) fn references(&self, schema: &Schema) -> RowReferences<'_> {
        let column = |column: Option<&'static str>| named(schema, self.name, column?);
        let id = column(Some("id"));
        RowReferences {
            id: id.unwrap_or_else(|| WatchedColumn { name: "id", spelling: "id".into(), sql: "id".into() }),
            label: column(self.label),
            key_id: column(self.key_id),
            user_id: column(self.user_id),
            table: self.name,
        }
    }

    /// All columns whose change is recorded, by their names in the database.
    pub(crate) fn spellings(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().chain(&self.secret).map(|column| column.spelling.as_str())
    }
}
