//! Rotates a key: creates a successor with the same owner, policy, limits and budgets, and lets the key end.
//!
//! All statements run in one transaction. The first one locks the key's row, so that one of two rotations wins. A
//! revocation at the same time either is seen here, or waits for the lock and then covers the successor.

use std::sync::Arc;

use time::OffsetDateTime;

use super::{
    Action, Database, DisplayRow, ManagementError, Result, SqlValue, Statement, needs_column,
    new_key::{DRAWS, hash, no_new_prefix},
    update,
};
use crate::{
    clock::{self, Timestamps},
    credential::{
        Credential, Prefix,
        generate::{self, Brand},
    },
    record::KeyRecord,
    store::{
        KeyStore, StoreError,
        schema::{ROTATED_BUDGETS, ROTATIONS, Schema},
        statement::{TransactionOutcome, first_value},
    },
};

mod refusals;
mod row_copy;

use refusals::{needs_rotations, refuse_early_clock, refuse_times, refuse_unusable};
use row_copy::{CopiedColumn, NewValue, RowCopy};

/// How to rotate a key.
#[derive(Debug, Clone, Default)]
pub struct KeyRotation {
    /// When the key ends. None: at once.
    pub ends_at: Option<OffsetDateTime>,
    /// When the successor expires. None: when the key would have expired.
    pub expires_at: Option<OffsetDateTime>,
    /// The name of the successor. None: the name of the key.
    pub name: Option<String>,
}

/// A key that was rotated.
#[derive(Debug)]
pub struct RotatedKey {
    /// The key that ends.
    pub predecessor: DisplayRow,
    /// The key in its place.
    pub successor: DisplayRow,
    /// The credential of the successor, which cannot be shown again.
    pub credential: Credential,
}

/// Columns that decide whether a key works. A rotation fails if one of them changes meanwhile.
const STATE: [&str; 3] = ["is_active", "deleted_at", "expires_at"];

/// One rotation of a key that may be rotated.
struct Plan<'a> {
    database: &'a Database,
    schema: Arc<Schema>,
    key: Arc<KeyRecord>,
    /// The values of [`STATE`], as far as the table has them.
    state: Vec<SqlValue>,
    columns: Vec<CopiedColumn>,
    budgets: Vec<KeyBudget>,
    budget_columns: Vec<CopiedColumn>,
    rotation: &'a KeyRotation,
    now: OffsetDateTime,
    ends_at: OffsetDateTime,
}

/// An active budget of the key.
struct KeyBudget {
    id: i64,
    /// The budget that it is a copy of, or that copies of it are known by.
    first: Option<i64>,
}

/// The prefix and hash of the new key.
struct NewCredential {
    prefix: Prefix,
    hash: String,
}

impl Database {
    /// Rotates the one key with this id or prefix.
    ///
    /// # Errors
    /// [`ManagementError::Refused`] when the key does not work or was rotated before, when a time makes no sense, or when
    /// the database has no place for it. Nothing is changed then.
    pub async fn rotate_key(
        &self,
        id_or_prefix: &str,
        rotation: &KeyRotation,
        brand: &Brand,
        cost: u32,
    ) -> Result<RotatedKey> {
        let plan = Plan::new(self, id_or_prefix, rotation).await?;
        for _ in 0..DRAWS {
            let credential = generate::generate(brand, &mut rand::rng());
            if !self.find_keys(credential.prefix().as_str()).await?.is_empty() {
                continue;
            }
            let hash = hash(credential.clone(), cost).await?;
            let statements = plan.statements(&NewCredential { prefix: credential.prefix(), hash });
            match self.change(Action::Rotate, statements, true, Box::new(|_| ())).await? {
                TransactionOutcome::Committed(_) => return plan.rotated(credential).await,
                TransactionOutcome::RolledBack(places) => match places.first() {
                    // Another process has created the same prefix in between.
                    Some(1) => {}
                    Some(2) => return Err(already_rotated(self, &plan.schema, &plan.key).await),
                    _ => return Err(plan.changed_meanwhile()),
                },
                TransactionOutcome::Failed(_, error) => return Err(plan.not_rotated(error)),
            }
        }
        Err(no_new_prefix(brand))
    }

    /// The record of a listed key, as a check reads it.
    async fn record_of(&self, listed: &DisplayRow) -> Result<Arc<KeyRecord>> {
        let (id, prefix) = (listed.text("id"), listed.text("key_prefix"));
        if let Ok(prefix) = Prefix::parse(&prefix) {
            let lookup = self.records(prefix, Timestamps::now()).await?;
            if let Some(record) = lookup.records.iter().find(|record| record.id.0.to_string() == id) {
                return Ok(Arc::clone(record));
            }
        }
        Err(ManagementError::Refused(format!(
            "key {id} is denied as invalid_credential, so it cannot be rotated; `keystile explain {id}` says why"
        )))
    }
}

impl<'a> Plan<'a> {
    async fn new(database: &'a Database, id_or_prefix: &str, rotation: &'a KeyRotation) -> Result<Self> {
        let schema = database.operator_schema().await?;
        needs_rotations(&schema)?;
        needs_column(&schema, "api_keys", "expires_at")?;
        if rotation.name.is_some() {
            needs_column(&schema, "api_keys", "name")?;
        }
        let listed = database.find_key(id_or_prefix).await?;
        // Before the record: a change in between is then noticed.
        let state = state(database, &schema, &listed).await?;
        let key = database.record_of(&listed).await?;
        let now = clock::wall();
        if key.is_active && !key.is_deleted && key.successor().is_some() {
            return Err(already_rotated(database, &schema, &key).await);
        }
        refuse_unusable(&key, now)?;
        refuse_early_clock(&listed, now)?;
        let ends_at = rotation.ends_at.unwrap_or(now);
        refuse_times(&key, ends_at, rotation.expires_at, now)?;
        let columns = database.copied_columns(&schema, "api_keys").await?;
        let budgets = budgets(database, &schema, &key).await?;
        let budget_columns =
            if budgets.is_empty() { Vec::new() } else { database.copied_columns(&schema, "budgets").await? };
        Ok(Self { database, schema, key, state, columns, budgets, budget_columns, rotation, now, ends_at })
    }

    /// Each of them returns a row, or nothing is changed.
    fn statements(&self, new: &NewCredential) -> Vec<Statement> {
        let mut statements =
            vec![self.lock(), self.insert_successor(new), self.insert_rotation(new), self.end_key()];
        if self.schema.has_budgets() {
            statements.push(self.count_budgets());
        }
        statements.extend(self.budgets.iter().flat_map(|budget| self.copy_budget(budget)));
        statements
    }

    /// Locks the row if its state is as it was read. Changes no value.
    fn lock(&self) -> Statement {
        let schema = &self.schema;
        let (id, expiry) = (schema.name("api_keys", "id"), schema.name("api_keys", "expires_at"));
        let same = state_columns(schema).zip(1..).map(|(column, at)| {
            let (value, param) =
                (schema.column("api_keys", column), self.database.statements().param(at, "text"));
            format!("COALESCE({value}, '') = {param}")
        });
        let mut params: Vec<_> =
            self.state.iter().map(|value| Some(value.clone().unwrap_or_default())).collect();
        let same = same.collect::<Vec<_>>().join(" AND ");
        params.push(Some(self.key.id.0.to_string()));
        let sql = format!(
            "UPDATE {} AS k SET {expiry} = k.{expiry} WHERE {same} AND k.{id} = {} RETURNING '1'",
            schema.relation("api_keys"),
            schema.param(params.len(), "api_keys", "id"),
        );
        Statement::new(sql, params)
    }

    fn insert_successor(&self, new: &NewCredential) -> Statement {
        let (schema, database) = (&*self.schema, self.database);
        let zero = || Some("0".to_owned());
        let mut values = vec![
            ("key_prefix", Some(new.prefix.as_str().to_owned())),
            ("key_hash", Some(new.hash.clone())),
            ("created_at", database.time(self.now)),
            ("updated_at", database.time(self.now)),
            ("last_used_at", None),
            ("total_requests", zero()),
            ("total_tokens", zero()),
            ("total_cost", zero()),
        ];
        values.extend(self.rotation.name.clone().map(|name| ("name", Some(name))));
        values.extend(self.rotation.expires_at.map(|end| ("expires_at", database.time(end))));
        let values = values.into_iter().map(|(name, value)| (name, NewValue::Param(value))).collect();
        let copy = RowCopy { schema, table: "api_keys", columns: &self.columns, values };
        let Statement { sql, mut params, .. } = copy.insert(self.key.id.0);
        params.push(Some(new.prefix.as_str().to_owned()));
        let sql = format!(
            "{sql} AND NOT EXISTS (SELECT 1 FROM {} e WHERE e.{} = {}) RETURNING '1'",
            schema.relation("api_keys"),
            schema.name("api_keys", "key_prefix"),
            schema.param(params.len(), "api_keys", "key_prefix"),
        );
        Statement::new(sql, params)
    }

    fn insert_rotation(&self, new: &NewCredential) -> Statement {
        let (schema, key) = (&self.schema, self.key.id.0);
        let (keys, rotations) = (schema.relation("api_keys"), schema.relation(ROTATIONS));
        let name = |column: &'static str| schema.name("api_keys", column);
        let integer = |alias: &str, column: &'static str| match schema.kind("api_keys", column) {
            Some(kind) => self.database.statements().as_integer(&format!("{alias}.{}", name(column)), kind),
            None => "NULL".to_owned(),
        };
        let sql = format!(
            "INSERT INTO {rotations}
                (predecessor_id, successor_id, limit_id, ends_at, predecessor_requests, created_at)
            SELECT {key}, {successor}, COALESCE((SELECT limit_id FROM {rotations} WHERE successor_id = {key}), {key}),
                {ends_at}, {requests}, {now}
            FROM {keys} n LEFT JOIN {keys} o ON o.{id} = {id_param} WHERE n.{prefix} = {prefix_param} AND n.{hash} = {hash_param}
            ON CONFLICT DO NOTHING RETURNING '1'",
            successor = integer("n", "id"),
            requests = integer("o", "total_requests"),
            ends_at = schema.param(1, ROTATIONS, "ends_at"),
            now = schema.param(2, ROTATIONS, "created_at"),
            id = name("id"),
            id_param = schema.param(3, "api_keys", "id"),
            prefix = name("key_prefix"),
            prefix_param = schema.param(4, "api_keys", "key_prefix"),
            hash = name("key_hash"),
            hash_param = schema.param(5, "api_keys", "key_hash"),
        );
        let params = [
            self.database.time(self.ends_at),
            self.database.time(self.now),
            Some(key.to_string()),
            Some(new.prefix.as_str().to_owned()),
            Some(new.hash.clone()),
        ];
        Statement::new(sql, params)
    }

    fn end_key(&self) -> Statement {
        let database = self.database;
        let values =
            vec![("expires_at", database.time(self.ends_at)), ("updated_at", database.time(self.now))];
        update(&self.schema, "api_keys", self.key.id.0, values)
    }

    /// Returns a row if the key has as many active budgets as were read.
    fn count_budgets(&self) -> Statement {
        let schema = &self.schema;
        let (condition, param) = active_budgets(schema, &self.key);
        let sql = format!(
            "SELECT '1' WHERE (SELECT count(*) FROM {} b WHERE {condition}) = {}",
            schema.relation("budgets"),
            self.budgets.len(),
        );
        Statement::new(sql, [param])
    }

    /// An application counts the use of the successor in rows of the successor, so each budget has a copy there.
    fn copy_budget(&self, budget: &KeyBudget) -> Vec<Statement> {
        let (schema, database, key) = (&*self.schema, self.database, self.key.id.0);
        let id = budget.id;
        let note = || {
            Statement::plain(format!(
                "INSERT INTO {} (budget_id, first_id, key_id) VALUES ({id}, {id}, {key}) RETURNING '1'",
                schema.relation(ROTATED_BUDGETS)
            ))
        };
        let noted = budget.first.is_none().then(note);
        let successor =
            format!("(SELECT successor_id FROM {} WHERE predecessor_id = {key})", schema.relation(ROTATIONS));
        let values = vec![
            ("api_key_id", NewValue::Expression(successor)),
            ("current_usage_cents", NewValue::Param(Some("0".into()))),
            ("created_at", NewValue::Param(database.time(self.now))),
            ("updated_at", NewValue::Param(database.time(self.now))),
        ];
        let insert = RowCopy { schema, table: "budgets", columns: &self.budget_columns, values }.insert(id);
        let copied = database.statements().copy_budget(schema, insert, budget.first.unwrap_or(id));
        noted.into_iter().chain(copied).collect()
    }

    async fn rotated(&self, credential: Credential) -> Result<RotatedKey> {
        let successor = successor_id(self.database, &self.schema, &self.key).await?;
        let successor = successor.ok_or_else(|| self.changed_meanwhile())?;
        Ok(RotatedKey {
            predecessor: self.database.describe_key(&self.key.id.0.to_string()).await?,
            successor: self.database.describe_key(&successor).await?,
            credential,
        })
    }

    fn changed_meanwhile(&self) -> ManagementError {
        let id = self.key.id.0;
        ManagementError::Refused(format!(
            "key {id} or its budgets were changed at the same time, so it was not rotated; look at it with \
             `keystile keys show {id}`, and try again"
        ))
    }

    /// What the database itself refuses, such as a right or a constraint.
    fn not_rotated(&self, error: StoreError) -> ManagementError {
        let StoreError::Unfit(reason) = error else { return error.into() };
        ManagementError::Refused(format!(
            "key {} was not rotated, and nothing was changed, because the database refuses a statement: {reason}",
            self.key.id.0
        ))
    }
}

async fn successor_id(database: &Database, schema: &Schema, key: &KeyRecord) -> Result<SqlValue> {
    let (rotations, id) = (schema.relation(ROTATIONS), key.id.0);
    let sql = format!("SELECT CAST(successor_id AS text) FROM {rotations} WHERE predecessor_id = {id}");
    Ok(first_value(database.query(Statement::plain(sql)).await?))
}

/// The error for a key that was rotated before, or at the same time.
async fn already_rotated(database: &Database, schema: &Schema, key: &KeyRecord) -> ManagementError {
    let id = key.id.0;
    let successor = match successor_id(database, schema, key).await {
        Ok(successor) => successor.unwrap_or_default(),
        Err(error) => return error,
    };
    match database.find_keys(&successor).await {
        Err(error) => error,
        Ok(keys) if keys.is_empty() => ManagementError::Refused(format!(
            "key {id} was rotated to key {successor}, which no longer exists; to rotate key {id} again, first run \
             DELETE FROM keystile_rotations WHERE predecessor_id = {id}"
        )),
        Ok(_) => ManagementError::Refused(format!(
            "key {id} was already rotated, to key {successor}; rotate key {successor} if you need another"
        )),
    }
}

fn state_columns(schema: &Schema) -> impl Iterator<Item = &'static str> {
    STATE.into_iter().filter(|column| schema.has("api_keys", column))
}

async fn state(database: &Database, schema: &Schema, listed: &DisplayRow) -> Result<Vec<SqlValue>> {
    let sql = format!(
        "SELECT {} FROM {} k WHERE k.{} = {}",
        schema.select("api_keys", state_columns(schema)),
        schema.relation("api_keys"),
        schema.name("api_keys", "id"),
        schema.param(1, "api_keys", "id"),
    );
    let rows = database.query(Statement::new(sql, [Some(listed.text("id"))])).await?;
    Ok(rows.into_iter().next().unwrap_or_default())
}

/// A condition on rows of `budgets`, named `b`, and its parameter.
fn active_budgets(schema: &Schema, key: &KeyRecord) -> (String, SqlValue) {
    let condition = format!(
        "b.{} = {} AND coalesce(lower({}), '1') NOT IN ('0', 'f', 'false')",
        schema.name("budgets", "api_key_id"),
        schema.param(1, "budgets", "api_key_id"),
        schema.column("budgets", "is_active"),
    );
    (condition, Some(key.id.0.to_string()))
}

async fn budgets(database: &Database, schema: &Schema, key: &KeyRecord) -> Result<Vec<KeyBudget>> {
    if !schema.has_budgets() {
        return Ok(Vec::new());
    }
    let (condition, param) = active_budgets(schema, key);
    let sql = format!(
        "SELECT {}, CAST(m.first_id AS text) FROM {} b LEFT JOIN {} m ON m.budget_id = b.{} WHERE {condition}
        ORDER BY b.{}",
        schema.column("budgets", "id"),
        schema.relation("budgets"),
        schema.relation(ROTATED_BUDGETS),
        schema.name("budgets", "id"),
        schema.name("budgets", "id"),
    );
    let rows = database.query(Statement::new(sql, [param])).await?;
    let budgets = rows.into_iter().map(|row| {
        let mut values = row.into_iter();
        let [id, first] = std::array::from_fn(|_| values.next().flatten()?.parse().ok());
        Some(KeyBudget { id: id?, first })
    });
    budgets.collect::<Option<Vec<_>>>().ok_or_else(|| {
        ManagementError::Refused(format!("a budget of key {} has an id that is no whole number", key.id.0))
    })
}
