//! The tables whose changes are logged: the columns that matter, and the keys that a changed row concerns.

use super::{
    decode::{self, budgets},
    schema::{ROTATED_BUDGET_COLUMNS, ROTATED_BUDGETS, ROTATION_COLUMNS, ROTATIONS, Schema},
};

use crate::record::PERIODS;

/// A table whose rows matter to decisions.
pub(crate) struct WatchedTable {
    pub(crate) name: &'static str,
    /// Columns that decisions read, as far as the table has them. The triggers compare these.
    pub(crate) columns: Vec<WatchedColumn>,
    /// A condition on `{row}` that matters as well: the spending has reached its limit. The spending itself changes with
    /// every request, and below the limit it changes no decision.
    pub(crate) spent: Option<String>,
    /// How the spending of rows adds up that rotations made. It has reached its limit if the sum has.
    pub(crate) shared: Option<SharedSpending>,
    /// The keys that a changed row concerns.
    pub(crate) entry_kind: EntryKind,
}

/// Spending that adds up over several rows. All conditions and expressions are on `{row}`.
pub(crate) struct SharedSpending {
    /// The table, in SQL.
    pub(crate) relation: String,
    /// The columns of the amount and of its limit, in SQL.
    pub(crate) amount: String,
    pub(crate) limit: String,
    /// A condition: there are other rows.
    pub(crate) is_shared: String,
    /// An expression for the amount of the other rows.
    pub(crate) by_others: String,
    /// A condition: the limit is enforced here.
    pub(crate) is_enforced: String,
    /// The column with the key whose chain is concerned.
    pub(crate) key: String,
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
    /// The keys with the row's `predecessor_id` and `successor_id`, and the chain of the key with its `limit_id`.
    Rotation,
    /// The key with the row's `key_id`.
    RotatedBudget,
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
    if schema.has_rotations() {
        tables.push((ROTATIONS, ROTATION_COLUMNS.to_vec()));
        tables.push((ROTATED_BUDGETS, ROTATED_BUDGET_COLUMNS.to_vec()));
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
            ROTATIONS => (None, EntryKind::Rotation),
            ROTATED_BUDGETS => (None, EntryKind::RotatedBudget),
            _ => (None, EntryKind::AllKeys),
        };
        let shared = match name {
            _ if !schema.has_rotations() || spent.is_none() => None,
            "api_keys" => Some(shared_by_chain(schema)),
            _ => Some(shared_by_copies(schema)),
        };
        WatchedTable { name, columns: columns.collect(), spent, shared, entry_kind }
    };
    read_columns(schema).into_iter().map(watch).collect()
}

/// `total_cost` of the keys of a chain.
fn shared_by_chain(schema: &Schema) -> SharedSpending {
    let name = |column| schema.name("api_keys", column);
    let (keys, rotations, id) = (schema.relation("api_keys"), schema.relation(ROTATIONS), name("id"));
    let (amount, row_id) = (name("total_cost"), format!("{{row}}.{id}"));
    let first = schema.limit_id(&row_id);
    let members = |column| format!("SELECT c.{column} FROM {rotations} c WHERE c.limit_id = {first}");
    let mut enforced = vec!["true".to_owned()];
    if schema.has("api_keys", "is_unlimited") {
        enforced.push(format!(
            "lower(COALESCE(CAST({{row}}.{} AS text), '')) NOT IN ('1', 't', 'true')",
            name("is_unlimited")
        ));
    }
    if schema.has("api_keys", "budget_type") {
        let periods = PERIODS.map(|period| format!("'{period}'")).join(", ");
        enforced.push(format!(
            "lower(trim(COALESCE(CAST({{row}}.{} AS text), ''))) NOT IN ({periods})",
            name("budget_type")
        ));
    }
    SharedSpending {
        relation: keys.to_owned(),
        limit: name("budget_limit_cents"),
        is_shared: format!("{first} IS NOT NULL"),
        by_others: format!(
            "COALESCE((SELECT sum(o.{amount}) FROM {keys} o WHERE o.{id} <> {row_id} AND o.{id} IN ({} UNION {})), 0)",
            members("predecessor_id"),
            members("successor_id"),
        ),
        is_enforced: enforced.join(" AND "),
        key: id,
        amount,
    }
}

/// `current_usage_cents` of the copies of a budget.
fn shared_by_copies(schema: &Schema) -> SharedSpending {
    let name = |column| schema.name("budgets", column);
    let (budgets, copies, id) = (schema.relation("budgets"), schema.relation(ROTATED_BUDGETS), name("id"));
    let (amount, row_id) = (name("current_usage_cents"), format!("{{row}}.{id}"));
    // What was used in a period that is over does not count.
    let running = if schema.has("budgets", "period_end") {
        format!(
            " AND (o.{} IS NULL OR {})",
            name("period_end"),
            schema.is_ahead("o", "budgets", "period_end")
        )
    } else {
        String::new()
    };
    SharedSpending {
        relation: budgets.to_owned(),
        limit: name("limit_cents"),
        is_shared: format!("EXISTS (SELECT 1 FROM {copies} c WHERE c.budget_id = {row_id})"),
        by_others: format!(
            "COALESCE((SELECT sum(o.{amount}) FROM {budgets} o WHERE o.{id} <> {row_id} AND o.{id} IN (
                SELECT c.budget_id FROM {copies} c WHERE c.first_id =
                    (SELECT f.first_id FROM {copies} f WHERE f.budget_id = {row_id})){running}), 0)"
        ),
        is_enforced: "true".to_owned(),
        key: name("api_key_id"),
        amount,
    }
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
