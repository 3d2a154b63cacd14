//! What this database's tables look like: found out once, then one set of SQL is built from it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use super::{
    MAX_RECORDS, StoreError, budgets,
    columns::Column,
    postgres, proofs, row,
    sql::{Backend, Dialect, Patience, Statement},
    sqlite,
};

/// The tables that matter, their columns, and the types of these.
pub(crate) struct Catalog {
    dialect: Dialect,
    /// By name in lower case, each with its columns by theirs.
    tables: HashMap<String, HashMap<String, Type>>,
    /// The tables' names in SQL, where a name alone could mean another table in another session.
    relations: HashMap<String, String>,
    /// Columns that the database computes.
    generated: HashSet<(String, String)>,
    /// The columns of each unique index of a table.
    unique: BTreeMap<(String, String), Vec<String>>,
    /// Differs as soon as the tables or triggers differ from those that this was read from.
    pub(crate) fingerprint: String,
    /// Selects [`row::COLUMNS`] of every row with one prefix, and, where there is a log of changes, which of
    /// them the statement has seen. The last cell has the stored proofs.
    pub(crate) records: Arc<str>,
}

/// A column as the database has it.
struct Type {
    /// Its name, as it is written.
    spelling: String,
    /// Its type; of a domain, the type below it.
    kind: String,
}

const REQUIRED: &[(&str, &[&str])] =
    &[("api_keys", &["id", "key_hash", "key_prefix", "user_id"]), ("users", &["id"])];

/// `to_regclass` looks where every other statement will: along the search path.
const POSTGRES: &str = "SELECT 'column', t.name, a.attname::text, format_type(b.oid, -1)
    FROM (VALUES ('api_keys'), ('users'), ('roles'), ('budgets'), ('keystile_changes'), ('keystile_proofs')) AS t (name)
    JOIN pg_attribute a ON a.attrelid = to_regclass(t.name)
    CROSS JOIN LATERAL (
        WITH RECURSIVE domains AS (
            SELECT oid, typtype, typbasetype FROM pg_type WHERE oid = a.atttypid
            UNION ALL SELECT p.oid, p.typtype, p.typbasetype FROM domains d JOIN pg_type p ON p.oid = d.typbasetype
        ) SELECT oid FROM domains WHERE typtype <> 'd') AS b
    WHERE a.attnum > 0 AND NOT a.attisdropped
    -- Read with every look-up, and done without where that is not allowed.
    AND (t.name <> 'keystile_proofs' OR has_table_privilege(a.attrelid, 'SELECT'))";

/// With generated columns (`hidden` is 2 or 3), without those of virtual tables that only functions see (1).
const SQLITE: &str = "WITH t (name) AS (SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')
        AND lower(name) IN ('api_keys', 'users', 'roles', 'budgets', 'keystile_changes', 'keystile_proofs'))
    SELECT 'column', lower(t.name), c.name, c.type FROM t JOIN pragma_table_xinfo(t.name) c WHERE c.hidden <> 1
    UNION ALL SELECT 'generated', lower(t.name), lower(c.name), ''
        FROM t JOIN pragma_table_xinfo(t.name) c WHERE c.hidden IN (2, 3)
    UNION ALL SELECT 'unique', lower(t.name), l.name, i.name FROM t JOIN pragma_index_list(t.name) l
        JOIN pragma_index_info(l.name) i WHERE l.\"unique\" AND i.name IS NOT NULL";

impl Catalog {
    /// Reads the catalogue, whatever tables there are.
    pub(crate) async fn read(backend: &Backend, patience: Patience) -> Result<Self, StoreError> {
        let dialect = backend.dialect();
        let sql = match dialect {
            Dialect::Sqlite => {
                format!("{SQLITE} UNION ALL SELECT 'relation', '', {}, ''", sqlite::change_log::FINGERPRINT)
            }
            Dialect::Postgres => postgres::change_log::tables(POSTGRES),
        };
        let mut catalog = Self {
            dialect,
            tables: HashMap::new(),
            relations: HashMap::new(),
            generated: HashSet::new(),
            unique: BTreeMap::new(),
            fingerprint: String::new(),
            records: Arc::default(),
        };
        for cells in backend.query(patience, Statement::new(sql, [])).await? {
            let mut cells = cells.into_iter().map(Option::unwrap_or_default);
            let [what, table, name, value] = std::array::from_fn(|_| cells.next().unwrap_or_default());
            match &*what {
                "column" => catalog.add(table, name, value),
                "generated" => drop(catalog.generated.insert((table, name))),
                "unique" => catalog.unique.entry((table, name)).or_default().push(value),
                _ if table.is_empty() => catalog.fingerprint = name,
                _ => drop(catalog.relations.insert(table, name)),
            }
        }
        catalog.records = catalog.select_records().into();
        Ok(catalog)
    }

    fn add(&mut self, table: String, spelling: String, kind: String) {
        let (columns, name) = (self.tables.entry(table).or_default(), spelling.to_ascii_lowercase());
        // Postgres can have `name` and `"Name"`: the one that needs no quotes is meant.
        if spelling == name || !columns.contains_key(&name) {
            columns.insert(name, Type { spelling, kind });
        }
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
        Some(&self.tables.get(table)?.get(column)?.kind)
    }

    /// A column's name as the database has it, if there is one: triggers find it by that in a row.
    pub(crate) fn spelling(&self, table: &str, column: &str) -> Option<&str> {
        Some(&self.tables.get(table)?.get(column)?.spelling)
    }

    /// A column's name for SQL. Only Postgres tells `name` from `"Name"`.
    pub(crate) fn name(&self, table: &str, column: &str) -> String {
        match self.spelling(table, column) {
            Some(spelling) if spelling != column && self.dialect == Dialect::Postgres => {
                format!("\"{}\"", spelling.replace('"', "\"\""))
            }
            _ => column.to_owned(),
        }
    }

    /// Whether there is a log of changes, as this version makes it.
    pub(crate) fn has_log(&self) -> bool {
        self.has_all("keystile_changes", &["user_id", "key_id", "nonce"])
    }

    /// Whether the database computes this column.
    pub(crate) fn is_generated(&self, table: &str, column: &str) -> bool {
        self.generated.contains(&(table.to_owned(), column.to_owned()))
    }

    /// The columns of each unique index of a table.
    pub(crate) fn unique(&self, table: &str) -> impl Iterator<Item = &[String]> {
        self.unique.iter().filter(move |((of, _), _)| of == table).map(|(_, columns)| &columns[..])
    }

    /// A table's name in SQL.
    pub(crate) fn relation<'a>(&'a self, table: &'a str) -> &'a str {
        self.relations.get(table).map_or(table, String::as_str)
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
        let (keys, users) = (self.relation("api_keys"), self.relation("users"));
        let (id, user_id) = (self.name("users", "id"), self.name("api_keys", "user_id"));
        format!("{keys} k LEFT JOIN {users} u ON u.{id} = k.{user_id}{}", self.roles())
    }

    /// The join that finds a user's role, where it is not in `users`.
    pub(crate) fn roles(&self) -> String {
        if !self.has_roles() {
            return String::new();
        }
        let (id, role_id) = (self.name("roles", "id"), self.name("users", "role_id"));
        format!(" LEFT JOIN {} r ON r.{id} = u.{role_id}", self.relation("roles"))
    }

    /// Whether a user's role is a row of `roles`.
    pub(crate) fn has_roles(&self) -> bool {
        !self.has("users", "role")
            && self.has("users", "role_id")
            && self.has("roles", "id")
            && self.has("roles", "name")
    }

    /// Newest first; what has no date is oldest, and the greater id decides.
    pub(crate) fn newest_first(&self) -> String {
        let name = |column| self.name("api_keys", column);
        match self.has("api_keys", "created_at") {
            true => format!("ORDER BY k.{} DESC NULLS LAST, k.{} DESC", name("created_at"), name("id")),
            false => format!("ORDER BY k.{} DESC", name("id")),
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
            Some(kind) => self.dialect.read(&format!("{alias}.{}", self.name(table, column)), kind),
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
        let (position, lag) = match self.dialect {
            Dialect::Postgres => (postgres::change_log::POSITION, postgres::change_log::LAG),
            Dialect::Sqlite => (sqlite::change_log::POSITION, "NULL"),
        };
        columns.push(if self.has_log() { position } else { "NULL" }.to_owned());
        columns.push(lag.to_owned());
        columns.push(proofs::select(self, self.dialect));
        let prefix = format!("k.{}", self.name("api_keys", "key_prefix"));
        format!(
            "SELECT {} FROM {} WHERE {prefix} = {} AND {} {} LIMIT {MAX_RECORDS}",
            columns.join(", "),
            self.joined(),
            self.param(1, "api_keys", "key_prefix"),
            self.dialect.is_exactly(&prefix, 1),
            self.newest_first(),
        )
    }
}
