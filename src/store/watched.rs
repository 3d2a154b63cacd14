//! The tables whose changes are logged: which columns of them matter, and whom a changed row concerns.

use super::{budgets, catalog::Catalog, row};

/// A table whose rows matter to decisions.
pub(crate) struct Watched {
    pub(crate) name: &'static str,
    /// Columns that decisions read, as far as the table has them. The triggers compare these.
    pub(crate) columns: Vec<WatchedColumn>,
    /// A condition on `{row}` that matters as well: whether the spending has reached a limit. The spending itself
    /// changes with every request, and below the limit it changes no decision.
    pub(crate) spent: Option<String>,
    /// Whom a changed row concerns.
    pub(crate) subject: Subject,
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

/// Whom a changed row concerns. A user's or budget's row is logged as that, and the reader looks up its keys: a key
/// that is inserted during the change would be missed by a trigger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The key with the row's `key_prefix`.
    Key,
    /// The user with the row's `id`.
    User,
    /// The key with the row's `api_key_id`, or the user with its `user_id`.
    Budget,
    /// Every key.
    Everything,
}

/// Columns that change with every request.
const TOTALS: &[&str] = &["total_cost", "current_usage_cents"];

/// The tables that this database's decisions read.
pub(crate) fn watched(catalog: &Catalog) -> Vec<Watched> {
    let read = |table: &'static str| {
        row::COLUMNS.iter().filter(move |(of, _)| *of == table).map(|(_, column)| *column)
    };
    let watch = |name, columns: &mut dyn Iterator<Item = &'static str>, spent, subject| {
        let columns = columns.filter(|column| !TOTALS.contains(column));
        let columns = columns.filter_map(|column| {
            let spelling = catalog.spelling(name, column)?.to_owned();
            Some(WatchedColumn { name: column, spelling, sql: catalog.name(name, column) })
        });
        Watched { name, columns: columns.collect(), spent, subject }
    };
    let spent = |table, total: &str, limit: &str| {
        let (total, limit) = (catalog.name(table, total), catalog.name(table, limit));
        format!("COALESCE({{row}}.{total}, 0) >= {{row}}.{limit}")
    };
    let of_key = catalog
        .has_all("api_keys", &["total_cost", "budget_limit_cents"])
        .then(|| spent("api_keys", "total_cost", "budget_limit_cents"));
    let mut tables = vec![
        watch("api_keys", &mut read("api_keys").chain(["user_id", "created_at"]), of_key, Subject::Key),
        watch("users", &mut read("users").chain(["role_id"]), None, Subject::User),
    ];
    if catalog.has_roles() {
        tables.push(watch("roles", &mut ["id", "name"].into_iter(), None, Subject::Everything));
    }
    if budgets::are_read(catalog) {
        let columns = &mut ["user_id", "api_key_id"].into_iter().chain(budgets::COLUMNS);
        let of_budget = Some(spent("budgets", "current_usage_cents", "limit_cents"));
        tables.push(watch("budgets", columns, of_budget, Subject::Budget));
    }
    tables
}

impl Watched {
    /// [`Watched::spent`] of this row.
    pub(crate) fn spent_of(&self, row: &str) -> Option<String> {
        self.spent.as_ref().map(|spent| spent.replace("{row}", row))
    }

    /// A column's name in SQL.
    pub(crate) fn sql<'a>(&'a self, name: &'a str) -> &'a str {
        self.columns.iter().find(|column| column.name == name).map_or(name, |column| &column.sql)
    }
}
