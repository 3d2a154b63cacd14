//! The tables whose changes are logged: which columns of them matter, and whom a changed row concerns.

use super::{budgets, catalog::Catalog, row};

/// A table whose rows matter to decisions.
pub(crate) struct Watched {
    pub(crate) name: &'static str,
    /// Columns that decisions read, as far as the table has them. The triggers compare these.
    pub(crate) columns: Vec<&'static str>,
    /// A condition on `{row}` that matters as well: whether the spending has reached a limit. The spending itself
    /// changes with every request, and below the limit it changes no decision.
    pub(crate) spent: Option<&'static str>,
    /// Whom a changed row concerns.
    pub(crate) subject: Subject,
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
    let columns = |of: &str| -> Vec<&'static str> {
        let columns = row::COLUMNS.iter().filter(|(table, _)| *table == of);
        columns.map(|(_, column)| *column).collect()
    };
    let mut tables = vec![
        Watched {
            name: "api_keys",
            columns: [columns("api_keys"), vec!["user_id", "created_at"]].concat(),
            spent: catalog
                .has_all("api_keys", &["total_cost", "budget_limit_cents"])
                .then_some("COALESCE({row}.total_cost, 0) >= {row}.budget_limit_cents"),
            subject: Subject::Key,
        },
        Watched {
            name: "users",
            columns: [columns("users"), vec!["role_id"]].concat(),
            spent: None,
            subject: Subject::User,
        },
    ];
    if catalog.has_roles() {
        let columns = vec!["id", "name"];
        tables.push(Watched { name: "roles", columns, spent: None, subject: Subject::Everything });
    }
    if budgets::are_read(catalog) {
        tables.push(Watched {
            name: "budgets",
            columns: [&["user_id", "api_key_id"], &budgets::COLUMNS[..]].concat(),
            spent: Some("COALESCE({row}.current_usage_cents, 0) >= {row}.limit_cents"),
            subject: Subject::Budget,
        });
    }
    for table in &mut tables {
        table.columns.retain(|column| catalog.has(table.name, column) && !TOTALS.contains(column));
    }
    tables
}

impl Watched {
    /// [`Watched::spent`] of this row.
    pub(crate) fn spent_of(&self, row: &str) -> Option<String> {
        self.spent.map(|spent| spent.replace("{row}", row))
    }
}
