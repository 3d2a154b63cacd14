//! The tables of a database as they are: names, columns, types. All SQL on these tables is built from it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use sha2::{Digest as _, Sha256};

use super::{StoreError, dialect::Dialect, statement::Rows};
use crate::revocation::{LogPosition, Snapshot};

/// The tables that matter, their columns, and the types of these.
pub(crate) struct Schema {
    dialect: &'static dyn Dialect,
    /// By name in lower case, each with its columns by name in lower case.
    tables: HashMap<String, HashMap<String, Type>>,
    /// The tables' names in SQL, where an unqualified name could be another table in another session.
    relations: HashMap<String, String>,
    /// Columns that the database computes.
    generated: HashSet<(String, String)>,
    /// The columns of each unique index of a table.
    unique: BTreeMap<(String, String), Vec<String>>,
    /// Differs once the tables or triggers differ from those that this was read from.
    pub(crate) fingerprint: String,
}

/// A column as the database has it.
#[derive(Clone)]
struct Type {
    /// Its name in the database.
    spelling: String,
    /// Its type. For a domain, the underlying type.
    kind: String,
}

/// The tables that a migration creates.
pub(crate) const TABLES: [&str; 2] = ["users", "api_keys"];

/// The change log.
pub(crate) const CHANGES: &str = "keystile_changes";

/// The durable proofs.
pub(crate) const PROOFS: &str = "keystile_proofs";

/// The columns of [`PROOFS`]. A table without them belongs to another application.
pub(crate) const PROOF_COLUMNS: [&str; 4] = ["key_id", "tag", "proven_at", "seal"];

/// The rotations of keys.
pub(crate) const ROTATIONS: &str = "keystile_rotations";

/// The columns of [`ROTATIONS`]. A table without them belongs to another application.
pub(crate) const ROTATION_COLUMNS: [&str; 6] =
    ["predecessor_id", "successor_id", "limit_id", "ends_at", "predecessor_requests", "created_at"];

/// The copies of budgets that belong together.
pub(crate) const ROTATED_BUDGETS: &str = "keystile_rotated_budgets";

/// The columns of [`ROTATED_BUDGETS`]. A table without them belongs to another application.
pub(crate) const ROTATED_BUDGET_COLUMNS: [&str; 3] = ["budget_id", "first_id", "key_id"];

/// The columns that `budgets` must have. A table without them belongs to another application.
pub(crate) const BUDGET_COLUMNS: [&str; 5] =
    ["id", "user_id", "api_key_id", "limit_cents", "current_usage_cents"];

/// The tables and columns that Keystile needs.
pub(crate) const REQUIRED: &[(&str, &[&str])] =
    &[("api_keys", &["id", "key_hash", "key_prefix", "user_id"]), ("users", &["id"])];

impl Schema {
    /// Reads the rows of [`Statements::read_schema`](super::statements::Statements::read_schema).
    pub(crate) fn new(dialect: &'static dyn Dialect, rows: Rows) -> Self {
        let mut schema = Self {
            dialect,
            tables: HashMap::new(),
            relations: HashMap::new(),
            generated: HashSet::new(),
            unique: BTreeMap::new(),
            fingerprint: String::new(),
        };
        for values in rows {
            let mut values = values.into_iter().map(Option::unwrap_or_default);
            let [what, table, name, value] = std::array::from_fn(|_| values.next().unwrap_or_default());
            match &*what {
                "column" => schema.add(table, name, value),
                "generated" => drop(schema.generated.insert((table, name))),
                "unique" => schema.unique.entry((table, name)).or_default().push(value),
                _ if table.is_empty() => schema.fingerprint = name,
                _ => drop(schema.relations.insert(table, name)),
            }
        }
        schema
    }

    fn add(&mut self, table: String, spelling: String, kind: String) {
        let (columns, name) = (self.tables.entry(table).or_default(), spelling.to_ascii_lowercase());
        // Postgres can have `name` and `"Name"`: the one that needs no quotes is used.
        if spelling == name || !columns.contains_key(&name) {
            columns.insert(name, Type { spelling, kind });
        }
    }

    /// Refuses a schema without the tables and columns that Keystile needs.
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
            let missing = self.missing(table, required);
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

    /// Whether a column of integers can hold this one: a comparison with one that is too large fails in Postgres.
    pub(crate) fn holds_integer(&self, table: &str, column: &str, number: i64) -> bool {
        match self.kind(table, column) {
            Some("smallint" | "int2") => i16::try_from(number).is_ok(),
            // In SQLite, each integer has 64 bits, so a larger one is found or not.
            Some("integer" | "int4") => i32::try_from(number).is_ok() || !self.dialect.has_narrow_integers(),
            _ => true,
        }
    }

    pub(crate) fn has_all(&self, table: &str, columns: &[&str]) -> bool {
        columns.iter().all(|column| self.has(table, column))
    }

    /// The columns of a table, by name in lower case.
    pub(crate) fn columns(&self, table: &str) -> BTreeSet<&str> {
        let columns = self.tables.get(table).into_iter().flat_map(HashMap::keys);
        columns.map(String::as_str).collect()
    }

    /// Which of these columns a table lacks.
    pub(crate) fn missing(&self, table: &str, columns: &[&'static str]) -> Vec<&'static str> {
        columns.iter().copied().filter(|column| !self.has(table, column)).collect()
    }

    /// The type of a column, if there is one.
    pub(crate) fn kind(&self, table: &str, column: &str) -> Option<&str> {
        Some(&self.tables.get(table)?.get(column)?.kind)
    }

    /// A column's name as the database has it, if there is one: triggers find it by that in a row.
    pub(crate) fn spelling(&self, table: &str, column: &str) -> Option<&str> {
        Some(&self.tables.get(table)?.get(column)?.spelling)
    }

    /// A column's name in SQL.
    pub(crate) fn name(&self, table: &str, column: &str) -> String {
        self.spelling(table, column)
            .map_or_else(|| column.to_owned(), |spelling| self.dialect.identifier(column, spelling))
    }

    /// Whether there is a log of changes, in the form of this version.
    pub(crate) fn has_log(&self) -> bool {
        self.has_all(CHANGES, &["user_id", "key_id", "nonce"])
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

    /// An expression for the first key of the chain of a key, which is an expression for an id; NULL for a key that was
    /// never rotated.
    pub(crate) fn limit_id(&self, key: &str) -> String {
        let rotations = self.relation(ROTATIONS);
        // Two sub-selects, so that each uses the index of its column.
        let by = |column: &str| format!("(SELECT f.limit_id FROM {rotations} f WHERE f.{column} = {key})");
        format!("COALESCE({}, {})", by("predecessor_id"), by("successor_id"))
    }

    /// A condition: the time in this column, of the table named `alias`, is ahead.
    pub(crate) fn is_ahead(&self, alias: &str, table: &str, column: &str) -> String {
        let (name, kind) = (self.name(table, column), self.kind(table, column).unwrap_or("text"));
        self.dialect.is_within(&format!("{alias}.{name}"), kind, Duration::ZERO)
    }

    /// The parameter of this number, for this column.
    pub(crate) fn param(&self, number: usize, table: &str, column: &str) -> String {
        self.dialect.param(number, self.kind(table, column).unwrap_or("text"))
    }

    /// Expressions for these columns of one table; NULL where there is no such column.
    pub(crate) fn select(
        &self,
        table: &'static str,
        columns: impl IntoIterator<Item = &'static str>,
    ) -> String {
        let columns = columns.into_iter().map(|column| self.column(table, column));
        columns.collect::<Vec<_>>().join(", ")
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

    /// Whether there are stored proofs that may be read.
    pub(crate) fn has_proofs(&self) -> bool {
        self.has_all(PROOFS, &PROOF_COLUMNS)
    }

    /// Whether there are the tables of rotated keys.
    pub(crate) fn has_rotations(&self) -> bool {
        self.has_all(ROTATIONS, &ROTATION_COLUMNS) && self.has_all(ROTATED_BUDGETS, &ROTATED_BUDGET_COLUMNS)
    }

    /// Whether there are budgets, with the columns that are needed.
    pub(crate) fn has_budgets(&self) -> bool {
        self.has_all("budgets", &BUDGET_COLUMNS)
    }

    /// The same tables, as if there were no budgets.
    pub(crate) fn without_budgets(&self) -> Self {
        let mut tables = self.tables.clone();
        tables.remove("budgets");
        Self {
            dialect: self.dialect,
            tables,
            relations: self.relations.clone(),
            generated: self.generated.clone(),
            unique: self.unique.clone(),
            fingerprint: self.fingerprint.clone(),
        }
    }

    /// Newest first. Keys without a date come last; the greater id decides between equal dates.
    pub(crate) fn newest_first(&self) -> String {
        let name = |column| self.name("api_keys", column);
        if self.has("api_keys", "created_at") {
            format!("ORDER BY k.{} DESC NULLS LAST, k.{} DESC", name("created_at"), name("id"))
        } else {
            format!("ORDER BY k.{} DESC", name("id"))
        }
    }

    /// An expression for one column as text, under the name that its table has in every statement.
    pub(crate) fn column(&self, table: &str, column: &str) -> String {
        let (alias, table, column) = match (table, column) {
            ("budgets", _) => ("b", table, column),
            (ROTATIONS, _) => ("c", table, column),
            ("users", "role") if self.has_roles() => ("r", "roles", "name"),
            ("users", _) => ("u", table, column),
            _ => ("k", table, column),
        };
        self.text_of(table, alias, column)
    }

    /// An expression for a column of a table under this alias, as text; NULL where there is no such column.
    pub(crate) fn text_of(&self, table: &str, alias: &str, column: &str) -> String {
        match self.kind(table, column) {
            Some(kind) => self.dialect.as_text(&format!("{alias}.{}", self.name(table, column)), kind),
            None => "NULL".to_owned(),
        }
    }

    /// The log position that a statement on these tables returned, as `instance/snapshot`.
    ///
    /// The epoch stands for the instance, which is a server since its start or a file since it was restored, and for the
    /// tables and triggers.
    pub(crate) fn log_position(&self, text: &str) -> Option<LogPosition> {
        let (instance, snapshot) = text.split_once('/')?;
        let snapshot: Snapshot = snapshot.parse().ok()?;
        let digest = Sha256::digest(format!("{instance}/{}", self.fingerprint));
        let epoch = digest.first_chunk().map(|first| u64::from_be_bytes(*first))?;
        Some(LogPosition::new(epoch, snapshot))
    }
}
