//! The tables whose changes are logged: the columns that matter, and the keys that a changed row concerns.

use super::{
    decode::{self, budgets},
    schema::Schema,
};

/// A table whose rows matter to decisions.
pub(crate) struct WatchedTable {
    pub(crate) name: &'static str,
    /// Columns that decisions read, as far as the table has them. The triggers compare these.
    pub(crate) columns: Vec<WatchedColumn>,
    /// A condition on `{row}` that matters as well: the spending has reached its limit. The spending itself changes with
    /// every request, and below the limit it changes no decision.
    pub(crate) spent: Option<String>,
    /// The keys that a changed row concerns.
    pub(crate) entry_kind: EntryKind,
}

/// A column by its names.
pub(crate) struct WatchedColumn {
    /// In this program.
    pub(crate) name: &'static str,
    /// In the database.
    pub(crate) spelling: String,
    /// In SQL.
    pub(crate) sql: String,
}

/// The keys that a changed row concerns. The row of a user or budget is logged by its id, and the reader looks up the
/// keys: a trigger would miss a key that is inserted during the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// The key with the row's `key_prefix`.
    Key,
    /// The user with the row's `id`.
    User,
    /// The key with the row's `api_key_id`, or the user with its `user_id`.
    Budget,
    /// Every key.
    AllKeys,
}

/// Columns that change with every request.
const TOTALS: &[&str] = &["total_cost", "current_usage_cents"];

/// The columns that decisions read, by table, as far as this database has them.
pub(crate) fn read_columns(schema: &Schema) -> Vec<(&'static str, Vec<&'static str>)> {
    let read = |table: &'static str| {
        decode::COLUMNS.iter().filter(move |(of, _)| *of == table).map(|(_, column)| *column)
    };
    let mut tables: Vec<(_, Vec<_>)> = vec![
        ("api_keys", read("api_keys").chain(["user_id", "created_at"]).collect()),
        ("users", read("users").chain(["role_id"]).collect()),
    ];
    if schema.has_roles() {
        tables.push(("roles", vec!["id", "name"]));
    }
    if schema.has_budgets() {
        tables.push(("budgets", ["user_id", "api_key_id"].into_iter().chain(budgets::COLUMNS).collect()));
    }
    for (table, columns) in &mut tables {
        columns.retain(|column| schema.has(table, column));
    }
    tables
}

/// The tables that this database's decisions read.
pub(crate) fn watched_tables(schema: &Schema) -> Vec<WatchedTable> {
    let spent = |table, total: &str, limit: &str| {
        let (total, limit) = (schema.name(table, total), schema.name(table, limit));
        format!("COALESCE({{row}}.{total}, 0) >= {{row}}.{limit}")
    };
    let watch = |(name, columns): (&'static str, Vec<&'static str>)| {
        let columns = columns.into_iter().filter(|column| !TOTALS.contains(column));
        let columns = columns.filter_map(|column| {
            let spelling = schema.spelling(name, column)?.to_owned();
            Some(WatchedColumn { name: column, spelling, sql: schema.name(name, column) })
        });
        let (spent, entry_kind) = match name {
            "api_keys" => {
                let has_total = schema.has_all(name, &["total_cost", "budget_limit_cents"]);
                let spent = has_total.then(|| spent(name, "total_cost", "budget_limit_cents"));
                (spent, EntryKind::Key)
            }
            "users" => (None, EntryKind::User),
            "budgets" => (Some(spent(name, "current_usage_cents", "limit_cents")), EntryKind::Budget),
            _ => (None, EntryKind::AllKeys),
        };
        WatchedTable { name, columns: columns.collect(), spent, entry_kind }
    };
    read_columns(schema).into_iter().map(watch).collect()
}

impl WatchedTable {
    /// [`WatchedTable::spent`] of this row.
    pub(crate) fn spent_of(&self, row: &str) -> Option<String> {
        self.spent.as_ref().map(|spent| spent.replace("{row}", row))
    }

    /// A column's name in SQL.
    pub(crate) fn sql<'a>(&'a self, name: &'a str) -> &'a str {
        self.columns.iter().find(|column| column.name == name).map_or(name, |column| &column.sql)
    }
}
