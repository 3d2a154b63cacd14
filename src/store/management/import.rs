//! Imports keys with their hashes, or with their secrets, which are hashed on the way: all keys or none.

use std::collections::{BTreeMap, HashMap};

use super::{
    Action, Database, ManagementError, NewKey, Result, Schema, Statement, StoreError,
    columns::{API_KEYS, ColumnKind},
    insert_from,
};
use crate::{
    credential::Prefix,
    store::{
        MAX_RECORDS,
        statement::{Progress, TransactionOutcome},
    },
};

mod options;
mod owners;
mod row;
mod secrets;

pub use options::{ImportOptions, ImportProgress, ImportStep};
pub use owners::OwnerRule;
use owners::{Owner, Owners};
pub use row::{ExportedUser, ImportRow};

/// What was imported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// New keys.
    pub keys: usize,
    /// New users.
    pub users: usize,
    /// Values that the database has no column for, by column: each is of a kind that restricts nothing.
    pub without_column: BTreeMap<&'static str, u64>,
}

/// Why nothing was imported.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImportError {
    /// The database failed, or refused it.
    #[error(transparent)]
    Manage(#[from] ManagementError),
    /// These lines cannot be imported, each with its reason.
    #[error("{} lines cannot be imported", .0.len())]
    Lines(BTreeMap<u64, String>),
}

/// Columns that restrict nothing. Another product's values for them are left out where the database has no such column.
const DISPENSABLE: [&str; 5] = ["name", "description", "tags", "created_at", "updated_at"];

impl From<StoreError> for ImportError {
    fn from(error: StoreError) -> Self {
        Self::Manage(error.into())
    }
}

impl Database {
    /// Inserts every key, or none when one of them cannot be inserted.
    ///
    /// # Errors
    /// [`ImportError::Lines`] with what is wrong, by line.
    pub async fn import(
        &self,
        mut rows: Vec<ImportRow>,
        options: &ImportOptions,
        progress: ImportProgress,
    ) -> Result<Imported, ImportError> {
        let schema = &self.operator_schema().await?;
        let mut owners = Owners::read(self, schema, &options.owners).await?;
        let mut errors = BTreeMap::new();
        let mut found = Vec::new();
        for row in &rows {
            match owners.of(row) {
                Ok(owner) => found.push(owner),
                Err(error) => drop(errors.insert(row.line, error)),
            }
        }
        self.refuse_crowds(schema, &rows, &mut errors).await?;
        self.refuse_duplicates(schema, &rows, &mut errors, &progress).await?;
        if !errors.is_empty() {
            return Err(ImportError::Lines(errors));
        }
        let mut imported = Imported { keys: rows.len(), users: owners.created(), ..Imported::default() };
        secrets::hash(&mut rows, options, &progress).await?;
        let plan = self.plan(schema, owners, rows.into_iter().zip(found), &mut imported)?;
        self.insert_all(plan, options, progress).await?;
        Ok(imported)
    }

    /// The statements, users first, and the line of each.
    fn plan(
        &self,
        schema: &Schema,
        owners: Owners,
        rows: impl Iterator<Item = (ImportRow, Owner)>,
        imported: &mut Imported,
    ) -> Result<Plan, ImportError> {
        let (mut plan, mut errors) = (Plan::default(), BTreeMap::new());
        for (line, user) in owners.into_new() {
            plan.add(line, self.new_user(schema, &user)?);
        }
        plan.users = plan.statements.len();
        for (row, owner) in rows {
            plan.has_ids |= row.value("id").is_some();
            let line = row.line;
            match self.statement(schema, owner, row, imported) {
                Ok(statement) => plan.add(line, statement),
                Err(error) => drop(errors.insert(line, error)),
            }
        }
        if errors.is_empty() { Ok(plan) } else { Err(ImportError::Lines(errors)) }
    }

    fn statement(
        &self,
        schema: &Schema,
        owner: Owner,
        mut row: ImportRow,
        imported: &mut Imported,
    ) -> Result<Statement, String> {
        row.values.retain(|(column, _)| *column != "user_id");
        if row.exported.is_some() {
            row.values.retain(|(name, _)| {
                let stays = schema.has("api_keys", name) || !DISPENSABLE.contains(name);
                if !stays {
                    *imported.without_column.entry(name).or_default() += 1;
                }
                stays
            });
        }
        for (name, value) in &mut row.values {
            if !schema.has("api_keys", name) {
                return Err(format!(
                    "the database's api_keys has no column {name}, so its value would be lost"
                ));
            }
            let kind = API_KEYS.iter().find(|column| column.name == *name).map(|column| column.kind);
            if matches!(kind, Some(ColumnKind::Timestamp | ColumnKind::Expiry)) {
                *value = value.take().map(|written| self.statements().timestamp(written));
            }
        }
        if row.exported.is_some() {
            for (column, value) in self.defaults(&NewKey::default()) {
                if schema.has("api_keys", column) && row.value(column).is_none() {
                    row.values.push((column, value));
                }
            }
        }
        let new_email = match owner {
            Owner::Existing(id) => {
                row.values.push(("user_id", Some(id)));
                false
            }
            Owner::New(email) => {
                row.values.push(("user_id", Some(email)));
                true
            }
        };
        // The user of this email was inserted before, in the same transaction.
        let value = |column: &str, number: usize| {
            (new_email && column == "user_id").then(|| {
                let (id, email) = (schema.name("users", "id"), schema.name("users", "email"));
                let param = schema.param(number, "users", "email");
                format!("(SELECT {id} FROM {} WHERE {email} = {param})", schema.relation("users"))
            })
        };
        // By prefix and hash: the prefix has an index.
        Ok(insert_from(schema, "api_keys", row.values, &[&["id"], &["key_prefix", "key_hash"]], value))
    }

    async fn insert_all(
        &self,
        plan: Plan,
        options: &ImportOptions,
        progress: ImportProgress,
    ) -> Result<(), ImportError> {
        let Plan { mut statements, lines, users, has_ids } = plan;
        if options.is_dry_run {
            // It returns no row, which undoes the transaction once all others were tried.
            statements.push(Statement::plain("SELECT 1 WHERE 1 = 0"));
        } else if has_ids && let Some(advance) = self.statements().advance_key_ids() {
            statements.push(advance.final_in_transaction());
        }
        let at_line = |at: usize, error: String| (lines.get(at).copied().unwrap_or_default(), error);
        let count: Progress = Box::new(move |done| {
            progress(ImportStep::Inserting, done.saturating_sub(users));
        });
        match self.change(Action::Import, statements, true, count).await? {
            TransactionOutcome::Committed(_) => Ok(()),
            TransactionOutcome::RolledBack(places) => {
                let exists = |at: usize| match at < users {
                    true => {
                        "a user with the same email or username was created meanwhile; run the command again"
                    }
                    false => "a key with this id or this key_hash is there already",
                };
                let errors = places.into_iter().filter(|at| *at < lines.len());
                let errors: BTreeMap<_, _> = errors.map(|at| at_line(at, exists(at).to_owned())).collect();
                if errors.is_empty() { Ok(()) } else { Err(ImportError::Lines(errors)) }
            }
            TransactionOutcome::Failed(at, error) => {
                Err(ImportError::Lines([at_line(at, error.to_string())].into()))
            }
        }
    }

    /// Refuses keys beyond the number that is tried for one prefix: they, or keys that exist, would be denied.
    async fn refuse_crowds(
        &self,
        schema: &Schema,
        rows: &[ImportRow],
        errors: &mut BTreeMap<u64, String>,
    ) -> Result<()> {
        let mut counts = self.prefixes(schema).await?;
        for row in rows {
            let count = counts.entry(row.prefix().to_owned()).or_default();
            *count += 1;
            if *count > MAX_RECORDS as u64 {
                let error = format!(
                    "more than {MAX_RECORDS} keys begin with the same {} characters, revoked ones included; only the \
                     newest {MAX_RECORDS} are tried, so the others would be denied",
                    Prefix::LEN
                );
                errors.entry(row.line).or_insert(error);
            }
        }
        Ok(())
    }

    /// The number of keys of each prefix.
    async fn prefixes(&self, schema: &Schema) -> Result<HashMap<String, u64>> {
        let prefix = self.statements().bytewise(&format!("k.{}", schema.name("api_keys", "key_prefix")));
        let sql = format!(
            "SELECT CAST({prefix} AS text), CAST(count(*) AS text) FROM {} k GROUP BY {prefix}",
            schema.relation("api_keys")
        );
        let rows = self.query(Statement::plain(sql)).await?;
        let count = |row: Vec<Option<String>>| {
            let mut values = row.into_iter().flatten();
            Some((values.next()?, values.next()?.parse().ok()?))
        };
        Ok(rows.into_iter().filter_map(count).collect())
    }
}

/// What one transaction does.
#[derive(Default)]
struct Plan {
    statements: Vec<Statement>,
    lines: Vec<u64>,
    /// The number of statements that create users.
    users: usize,
    has_ids: bool,
}

impl Plan {
    fn add(&mut self, line: u64, statement: Statement) {
        self.lines.push(line);
        self.statements.push(statement);
    }
}
