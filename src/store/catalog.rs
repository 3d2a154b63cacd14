//! What this database's tables look like: found out once, then one set of SQL is built from it.

use std::{collections::HashMap, sync::Arc};

use super::{
    MAX_RECORDS, StoreError, budgets, changes,
    columns::Column,
    row,
    sql::{Backend, Dialect, Patience, Statement},
};

/// The tables that matter, their columns, and the types of these.
pub(crate) struct Catalog {
    dialect: Dialect,
    tables: HashMap<String, HashMap<String, String>>,
    /// Selects [`row::COLUMNS`] of every row with one prefix, and, where there is a log of changes, which of
    /// them the statement has seen.
    pub(crate) records: Arc<str>,
}

const REQUIRED: &[(&str, &[&str])] =
    &[("api_keys", &["id", "key_hash", "key_prefix", "user_id"]), ("users", &["id"])];

/// `to_regclass` looks where every other statement will: along the search path.
const POSTGRES: &str = "SELECT t.name, a.attname::text, format_type(a.atttypid, -1)
    FROM (VALUES ('api_keys'), ('users'), ('roles'), ('budgets'), ('keystile_changes')) AS t (name)
    JOIN pg_attribute a ON a.attrelid = to_regclass(t.name)
    WHERE a.attnum > 0 AND NOT a.attisdropped";

const SQLITE: &str = "SELECT m.name, lower(c.name), c.type
    FROM sqlite_schema m JOIN pragma_table_info(m.name) c
    WHERE m.name IN ('api_keys', 'users', 'roles', 'budgets', 'keystile_changes')";

impl Catalog {
    /// Reads the catalogue, whatever tables there are.
    pub(crate) async fn read(backend: &Backend, patience: Patience) -> Result<Self, StoreError> {
        let dialect = backend.dialect();
        let sql = match dialect {
            Dialect::Sqlite => SQLITE,
            Dialect::Postgres => POSTGRES,
        };
        let mut tables: HashMap<String, HashMap<String, String>> = HashMap::new();
        for cells in backend.query(patience, Statement::new(sql, [])).await? {
            let mut cells = cells.into_iter().map(Option::unwrap_or_default);
            let [table, column, kind] = std::array::from_fn(|_| cells.next().unwrap_or_default());
            tables.entry(table).or_default().insert(column, kind);
        }
        let mut catalog = Self { dialect, tables, records: Arc::default() };
        catalog.records = catalog.select_records().into();
        Ok(catalog)
    }

    /// Passes the catalogue on when it has what Keystile cannot do without.
    pub(crate) fn fit(self) -> Result<Self, StoreError> {
        for (table, required) in REQUIRED {
            if !self.has_table(table) {
                return Err(StoreError::Unfit(
                    format!(
                        "the database has no table {table}; run `keystile migrate`, or set --database-url to the right one"
                    )
                    .into(),
                ));
            }
            let missing: Vec<_> =
                required.iter().copied().filter(|column| !self.has(table, column)).collect();
            if !missing.is_empty() {
                return Err(StoreError::Unfit(
                    format!("the table {table} is not Keystile's: it lacks {}", missing.join(", ")).into(),
                ));
            }
        }
        Ok(self)
    }

    pub(crate) fn has_table(&self, table: &str) -> bool {
        self.tables.contains_key(table)
    }

    pub(crate) fn has(&self, table: &str, column: &str) -> bool {
        self.kind(table, column).is_some()
    }

    pub(crate) fn has_all(&self, table: &str, columns: &[&str]) -> bool {
        columns.iter().all(|column| self.has(table, column))
    }

    /// The type of a column, if there is one.
    pub(crate) fn kind(&self, table: &str, column: &str) -> Option<&str> {
        self.tables.get(table)?.get(column).map(String::as_str)
    }

    /// The parameter of this number, for this column.
    pub(crate) fn param(&self, number: usize, table: &str, column: &str) -> String {
        self.dialect.param(number, self.kind(table, column).unwrap_or("text"))
    }

    /// Expressions for these columns of one table; NULL where there is no such column.
    pub(crate) fn select(&self, table: &'static str, columns: &[Column]) -> String {
        let each = columns.iter().map(|column| self.column(table, column.name));
        each.collect::<Vec<_>>().join(", ")
    }

    /// `api_keys`, `users` and where needed `roles`, joined, under the names `k`, `u` and `r`.
    pub(crate) fn joined(&self) -> String {
        format!("api_keys k LEFT JOIN users u ON u.id = k.user_id{}", self.roles())
    }

    /// The join that finds a user's role, where it is not in `users`.
    pub(crate) fn roles(&self) -> &'static str {
        if self.has_roles() { " LEFT JOIN roles r ON r.id = u.role_id" } else { "" }
    }

    /// Whether a user's role is a row of `roles`.
    pub(crate) fn has_roles(&self) -> bool {
        !self.has("users", "role")
            && self.has("users", "role_id")
            && self.has("roles", "id")
            && self.has("roles", "name")
    }

    /// Newest first; what has no date is oldest, and the greater id decides.
    pub(crate) fn newest_first(&self) -> &'static str {
        match self.has("api_keys", "created_at") {
            true => "ORDER BY k.created_at DESC NULLS LAST, k.id DESC",
            false => "ORDER BY k.id DESC",
        }
    }

    /// An expression for one column, under the name that its table has in every statement.
    pub(super) fn column(&self, table: &'static str, column: &'static str) -> String {
        let (alias, table, column) = match (table, column) {
            row::BUDGETS => return budgets::select(self, self.dialect),
            ("budgets", _) => ("b", table, column),
            ("users", "role") if self.has_roles() => ("r", "roles", "name"),
            ("users", _) => ("u", table, column),
            _ => ("k", table, column),
        };
        match self.kind(table, column) {
            Some(kind) => self.dialect.read(&format!("{alias}.{column}"), kind),
            None => "NULL".to_owned(),
        }
    }

    /// The costs of the hashes of active keys: of each cost one row.
    pub(crate) fn select_costs(&self) -> String {
        let hash = match self.kind("api_keys", "key_hash") {
            // As it is: the statement reads every row.
            Some(kind) if kind == "text" || kind.starts_with("character") => "k.key_hash".to_owned(),
            _ => self.column("api_keys", "key_hash"),
        };
        let active = match self.has("api_keys", "is_active") {
            true => format!(" AND lower({}) IN ('1', 't', 'true')", self.column("api_keys", "is_active")),
            false => String::new(),
        };
        format!(
            "SELECT DISTINCT substr({hash}, 5, 2) FROM api_keys k WHERE {hash} LIKE '$2_$__$%'{active} LIMIT 1000"
        )
    }

    fn select_records(&self) -> String {
        let mut columns: Vec<_> =
            row::COLUMNS.iter().map(|(table, column)| self.column(table, column)).collect();
        if self.has_table(changes::TABLE) {
            columns.push(changes::position(self.dialect).to_owned());
        }
        format!(
            "SELECT {} FROM {} WHERE k.key_prefix = {} {} LIMIT {MAX_RECORDS}",
            columns.join(", "),
            self.joined(),
            self.param(1, "api_keys", "key_prefix"),
            self.newest_first(),
        )
    }
}
