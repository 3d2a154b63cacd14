//! Imports keys with their hashes, or with their secrets, which are hashed on the way: all keys or none.

use std::collections::{BTreeMap, HashMap};

use super::{
    ColumnValue, Database, ManagementError, NewKey, Result, Schema, Statement, StoreError,
    columns::{API_KEYS, ColumnKind},
    insert_from,
};
use crate::{
    credential::{Credential, Prefix},
    record::{KeyHash, Sha256Hash},
    store::{
        MAX_RECORDS,
        statement::{Progress, TransactionOutcome},
    },
};

mod owners;
mod secrets;

pub use owners::{ExportedUser, OwnerRule};
use owners::{Owner, Owners};

/// One key to import, its values checked.
#[derive(Debug, Clone)]
pub struct ImportRow {
    line: u64,
    values: Vec<ColumnValue>,
    user_email: Option<String>,
    /// What another product says of the key. `None` for a row with the columns of `api_keys`.
    exported: Option<Exported>,
}

/// A key of another product.
#[derive(Debug, Clone)]
struct Exported {
    owner: Option<ExportedUser>,
    /// The whole key, whose hash is still to be made.
    secret: Option<Credential>,
}

/// How keys are imported.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Whose the keys of another product are.
    pub owners: OwnerRule,
    /// The bcrypt cost of hashes that are made.
    pub cost: u32,
    /// Whether everything is tried and nothing is kept.
    pub is_dry_run: bool,
}

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

/// A step that takes long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportStep {
    /// Keys are looked for among those that exist.
    Comparing,
    /// Hashes are made.
    Hashing,
    /// Rows are inserted.
    Inserting,
}

/// Receives the number of keys that are done in a step.
pub type ImportProgress = std::sync::Arc<dyn Fn(ImportStep, usize) + Send + Sync>;

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

impl ImportRow {
    /// The column that names the key's user by email, in place of `user_id`.
    pub const USER_EMAIL: &'static str = "user_email";

    /// Whether a row may have this column.
    pub fn knows(column: &str) -> bool {
        column == Self::USER_EMAIL || API_KEYS.iter().any(|known| known.name == column)
    }

    /// Checks the columns and values of one line.
    ///
    /// # Errors
    /// A sentence that names the column and its expected value. It repeats no value, which may be a hash in the wrong
    /// column.
    pub fn parse(line: u64, fields: impl IntoIterator<Item = (String, String)>) -> Result<Self, String> {
        let row = Self::with_values(line, fields)?;
        for column in ["key_hash", "key_prefix"] {
            if row.value(column).is_none() {
                return Err(format!("{column} is missing"));
            }
        }
        if row.value("user_id").is_none() && row.user_email.is_none() {
            return Err("user_id or user_email is missing".into());
        }
        Ok(row)
    }

    /// A key of another product, of which the whole secret is known.
    ///
    /// # Errors
    /// A sentence that names the column whose value does not fit.
    pub fn with_secret(
        line: u64,
        secret: Credential,
        owner: Option<ExportedUser>,
        fields: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, String> {
        let mut row = Self::with_values(line, fields)?;
        row.values.push(("key_prefix", Some(secret.prefix().as_str().to_owned())));
        row.exported = Some(Exported { owner, secret: Some(secret) });
        Ok(row)
    }

    /// A key of another product, of which the beginning and a hash are known.
    ///
    /// # Errors
    /// As above.
    pub fn with_hash(
        line: u64,
        (prefix, hash): (Prefix, Sha256Hash),
        owner: Option<ExportedUser>,
        fields: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, String> {
        let mut row = Self::with_values(line, fields)?;
        row.values.push(("key_prefix", Some(prefix.as_str().to_owned())));
        row.values.push(("key_hash", Some(hash.expose())));
        row.exported = Some(Exported { owner, secret: None });
        Ok(row)
    }

    fn with_values(line: u64, fields: impl IntoIterator<Item = (String, String)>) -> Result<Self, String> {
        let mut row = Self { line, values: Vec::new(), user_email: None, exported: None };
        for (name, text) in fields {
            if name == Self::USER_EMAIL {
                row.user_email = Some(text);
                continue;
            }
            let Some(column) = API_KEYS.iter().find(|column| column.name == name) else {
                return Err("a column that api_keys does not have".into());
            };
            let value = column.kind.normalize(&text);
            row.values.push((column.name, value.map_err(|expected| format!("{name} is not {expected}"))?));
        }
        row.values.retain(|(_, value)| value.is_some());
        Ok(row)
    }

    fn value(&self, column: &str) -> Option<&str> {
        self.values.iter().find(|(name, _)| *name == column)?.1.as_deref()
    }

    fn prefix(&self) -> &str {
        self.value("key_prefix").unwrap_or_default()
    }

    fn secret(&self) -> Option<&Credential> {
        self.exported.as_ref()?.secret.as_ref()
    }

    /// The SHA-256 of its secret, where it is known.
    fn sha256(&self) -> Option<KeyHash> {
        match self.secret() {
            Some(secret) => Some(Sha256Hash::of(secret).into()),
            None => self.value("key_hash")?.parse::<Sha256Hash>().ok().map(KeyHash::from),
        }
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
        match self.backend().transaction(statements, true, count).await? {
            TransactionOutcome::Committed => Ok(()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixtures;

    fn parse(fields: &[(&str, &str)]) -> Result<ImportRow, String> {
        let base = [("key_hash", fixtures::HASH), ("key_prefix", "ks_sampl"), ("user_id", "1")];
        let kept = base.iter().filter(|(name, _)| fields.iter().all(|(other, _)| other != name));
        let fields = kept.chain(fields.iter().filter(|(_, text)| !text.is_empty()));
        ImportRow::parse(2, fields.map(|(name, text)| ((*name).to_owned(), (*text).to_owned())))
    }

    #[test]
    fn every_malformed_value_is_named_by_its_column_and_not_repeated() {
        assert!(parse(&[]).is_ok());
        for (column, bad) in [
            ("key_hash", "$2x$secret"),
            ("key_hash", "$sha256$secret"),
            ("key_hash", ""),
            ("key_prefix", "short"),
            ("user_id", fixtures::HASH),
            ("expires_at", "tomorrow"),
            ("rate_limit_per_day", "-1"),
            ("scopes", "chat embed"),
            ("is_active", "yes!"),
        ] {
            let error = parse(&[(column, bad)]).expect_err(column);
            assert!(error.contains(column), "{error}");
            assert!(bad.is_empty() || !error.contains(bad), "{error}");
        }
    }
}
