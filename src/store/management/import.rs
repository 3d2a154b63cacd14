//! Imports rows with their hashes: all rows or none.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    Action, ColumnValue, Database, ManagementError, Result, Schema, Statement, StoreError,
    columns::{API_KEYS, ColumnKind},
    insert,
};
use crate::store::statement::{Progress, TransactionOutcome};

/// One row to import, its values checked.
#[derive(Debug, Clone)]
pub struct ImportRow {
    line: u64,
    values: Vec<ColumnValue>,
    user_email: Option<String>,
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
        let mut row = Self { line, values: Vec::new(), user_email: None };
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

    fn value(&self, column: &str) -> Option<&str> {
        self.values.iter().find(|(name, _)| *name == column)?.1.as_deref()
    }
}

impl Database {
    /// Inserts every row, or none when one of them cannot be inserted. `progress` receives the number of rows done.
    ///
    /// # Errors
    /// [`ImportError::Lines`] with what is wrong, by line.
    pub async fn import(&self, rows: Vec<ImportRow>, progress: Progress) -> Result<usize, ImportError> {
        let schema = &self.operator_schema().await?;
        let users = Users::read(self, schema).await?;
        let (mut lines, mut statements, mut errors) = (Vec::new(), Vec::new(), BTreeMap::new());
        let with_ids = rows.iter().any(|row| row.value("id").is_some());
        for row in rows {
            lines.push(row.line);
            match self.statement(schema, &users, row.clone()) {
                Ok(statement) => statements.push(statement),
                Err(error) => drop(errors.insert(row.line, error)),
            }
        }
        if !errors.is_empty() {
            return Err(ImportError::Lines(errors));
        }
        let imported = statements.len();
        if with_ids && let Some(advance) = self.statements().advance_key_ids() {
            statements.push(advance.final_in_transaction());
        }
        let at_line = |at: usize, error: String| (lines.get(at).copied().unwrap_or_default(), error);
        match self.change(Action::Import, statements, true, progress).await? {
            TransactionOutcome::Committed(_) => Ok(imported),
            TransactionOutcome::RolledBack(places) => {
                let there = "a key with this id or this key_hash is there already";
                let errors = places.into_iter().map(|at| at_line(at, there.to_owned()));
                Err(ImportError::Lines(errors.collect()))
            }
            TransactionOutcome::Failed(at, error) => {
                Err(ImportError::Lines([at_line(at, error.to_string())].into()))
            }
        }
    }

    fn statement(&self, schema: &Schema, users: &Users, mut row: ImportRow) -> Result<Statement, String> {
        let user = users.of(&row)?;
        row.values.retain(|(column, _)| *column != "user_id");
        row.values.push(("user_id", Some(user)));
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
        // By prefix and hash: the prefix has an index.
        Ok(insert(schema, "api_keys", row.values, &[&["id"], &["key_prefix", "key_hash"]]))
    }
}

/// The users who may own keys.
struct Users {
    ids: HashSet<String>,
    emails: HashMap<String, Vec<String>>,
}

impl Users {
    async fn read(database: &Database, schema: &Schema) -> Result<Self> {
        let email = if schema.has("users", "email") { "lower(CAST(email AS text))" } else { "NULL" };
        let sql = format!("SELECT CAST(id AS text), {email} FROM {}", schema.relation("users"));
        let (mut ids, mut emails) = (HashSet::new(), HashMap::<_, Vec<_>>::new());
        for values in database.query(Statement::new(sql, [])).await? {
            let mut values = values.into_iter();
            let (Some(Some(id)), email) = (values.next(), values.next()) else { continue };
            if let Some(Some(email)) = email {
                emails.entry(email).or_default().push(id.clone());
            }
            ids.insert(id);
        }
        Ok(Self { ids, emails })
    }

    fn of(&self, row: &ImportRow) -> Result<String, String> {
        let by_email = match &row.user_email {
            None => None,
            Some(email) => match self.emails.get(&email.to_lowercase()).map(Vec::as_slice) {
                Some([id]) => Some(id.clone()),
                Some([_, ..]) => return Err("several users have this user_email; give user_id".into()),
                _ => return Err("no user has this user_email; create them first".into()),
            },
        };
        match (row.value("user_id"), by_email) {
            (Some(id), Some(other)) if *id != other => Err("user_id and user_email are two users".into()),
            (Some(id), _) if !self.ids.contains(id) => Err("no user has this user_id".into()),
            (Some(id), _) => Ok(id.to_owned()),
            (None, Some(id)) => Ok(id),
            (None, None) => Err("user_id or user_email is missing".into()),
        }
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
