//! Keys: create, list, find, revoke.

use std::{collections::VecDeque, num::NonZeroUsize};

use time::OffsetDateTime;

use super::{
    Action, ColumnValue, Database, DisplayRow, KeyFilter, KeyPage, ManagementError, PageCursor, PageRequest,
    Result, Schema, SqlValue, Statement, assignments,
    chain::is_in_chain_of,
    columns::{API_KEYS, Column, ColumnKind, write_list},
    id, insert,
    key_filter::Conditions,
    key_page::SortExpression,
    needs_column, update,
    users::{EMAIL, user_id},
};
use crate::{
    clock::{self, Timestamps},
    credential::{
        Credential, Prefix,
        generate::{self, Brand},
    },
    record::{HashKind, KeyHash, KeyId, Limits, Sha256Hash, UserId},
    store::{
        KeyStore, Row,
        decode::value,
        statement::{Rows, Step},
    },
};

/// A key to create. Empty fields are not set.
#[derive(Debug, Clone, Default)]
pub struct NewKey {
    /// Id or email of its user.
    pub user: String,
    /// Its name.
    pub name: Option<String>,
    /// Its description.
    pub description: Option<String>,
    /// Expiry time.
    pub expires_at: Option<OffsetDateTime>,
    /// Its scopes.
    pub scopes: Vec<String>,
    /// Its tags.
    pub tags: Vec<String>,
    /// `allowed_models`.
    pub models: Vec<String>,
    /// `allowed_endpoints`.
    pub endpoints: Vec<String>,
    /// `allowed_ips`.
    pub ips: Vec<String>,
    /// `allowed_chatbots`.
    pub chatbots: Vec<String>,
    /// `allowed_agents`.
    pub agents: Vec<String>,
    /// `allowed_extract_templates`.
    pub extract_templates: Vec<String>,
    /// Its rate limits.
    pub limits: Limits,
    /// Its budget, in cents.
    pub budget_limit_cents: Option<i64>,
    /// The period of the budget.
    pub budget_type: Option<String>,
    /// Maximum number of the user's keys that are not revoked, with the new one.
    pub max_keys: Option<u32>,
}

/// What was revoked.
#[derive(Debug, Clone)]
pub struct RevokedKeys {
    /// The key itself.
    pub key: DisplayRow,
    /// The other keys of its chain.
    pub others: Vec<DisplayRow>,
}

/// Maximum number of generated keys until one has a new prefix. One in 14.7 million collides with a given key.
pub(super) const DRAWS: usize = 16;

impl Database {
    /// Creates a key: the row, and the credential, which cannot be shown again.
    ///
    /// # Errors
    /// [`ManagementError`] when the user is unknown, a setting has no column, or the database fails.
    pub async fn create_key(
        &self,
        new: &NewKey,
        brand: &Brand,
        cost: u32,
    ) -> Result<(DisplayRow, Credential)> {
        let schema = &self.operator_schema().await?;
        let user = user_id(&self.find_user(&new.user).await?)?;
        let mut values = self.settings(new);
        for (column, _) in &values {
            needs_column(schema, "api_keys", column)?;
        }
        values.push(("user_id", Some(user.0.to_string())));
        let defaults = self.defaults(new).into_iter();
        values.extend(defaults.filter(|(column, _)| schema.has("api_keys", column)));
        for _ in 0..DRAWS {
            let credential = generate::generate(brand, &mut rand::rng());
            if !self.find_keys(credential.prefix().as_str()).await?.is_empty() {
                continue;
            }
            let mut values = values.clone();
            values.push(("key_prefix", Some(credential.prefix().as_str().to_owned())));
            values.push(("key_hash", Some(hash(credential.clone(), cost).await?)));
            // Another process may have created the same prefix in between.
            let insert = insert(schema, "api_keys", values, &[&["key_prefix"]]);
            let rows = match new.max_keys {
                Some(max) => self.insert_below(schema, user, max, insert).await?,
                None => self.change_by(Action::Create, insert).await?,
            };
            if let Some(id) = id(&rows) {
                return Ok((self.find_key(&id.to_string()).await?, credential));
            }
        }
        Err(no_new_prefix(brand))
    }

    /// Inserts a key if its user has fewer than `max` keys. The user's row is locked meanwhile, so that no other insert
    /// passes the limit with it.
    async fn insert_below(&self, schema: &Schema, user: UserId, max: u32, insert: Statement) -> Result<Rows> {
        let lock = format!(
            "SELECT CAST(u.{id} AS text) FROM {} u WHERE u.{id} = {}{}",
            schema.relation("users"),
            schema.param(1, "users", "id"),
            self.statements().lock_rows("u"),
            id = schema.name("users", "id"),
        );
        let lock = Statement::new(lock, [Some(user.0.to_string())]);
        let filter = KeyFilter { user: Some(user.0.to_string()), ..KeyFilter::default() };
        let conditions = self.key_conditions(schema, &filter, Vec::new()).await?;
        let keys = schema.relation("api_keys");
        let count = format!("SELECT CAST(count(*) AS text) FROM {keys} k {}", conditions.clause());
        let mut steps = VecDeque::from([Statement::new(count, conditions.params), insert]);
        let (mut subject, mut made) = (self.subject(Action::Create), None);
        self.decide_change(Action::Create, lock, move |rows| {
            if let Some(made) = made.take() {
                return Ok(Step::Commit(made));
            }
            if steps.len() == 1 && id(&rows).is_none_or(|count| count >= i64::from(max)) {
                return Err(ManagementError::Refused(format!(
                    "the user has {max} keys already, as many as allowed; revoke one first"
                )));
            }
            if let Some(step) = steps.pop_front() {
                return Ok(Step::Run(step));
            }
            let Some(id) = id(&rows) else { return Ok(Step::Abandon(rows)) };
            let Some(subject) = subject.take() else { return Ok(Step::Commit(rows)) };
            made = Some(rows);
            Ok(Step::Run(subject(id)))
        })
        .await
    }

    /// One page of the keys that the filter selects.
    ///
    /// # Errors
    /// [`ManagementError`] when the user is unknown, the database has no column that the filter or the order needs, or
    /// does not answer.
    pub async fn list_keys(&self, filter: &KeyFilter, page: &PageRequest) -> Result<KeyPage> {
        let schema = &self.operator_schema().await?;
        let mut conditions = self.key_conditions(schema, filter, Vec::new()).await?;
        let sort = SortExpression::new(page, schema, self.statements())?;
        if let Some(cursor) = &page.after {
            if !cursor.fits(page.sort, page.reverse) {
                return Err(ManagementError::Refused(
                    "--after: the cursor is of a list in another order; use the same order for every page"
                        .into(),
                ));
            }
            sort.add_after(cursor, &mut conditions, self.statements());
        }
        let limit = page.limit.map_or(usize::MAX, NonZeroUsize::get);
        // One more, to know whether there are more.
        let at_most =
            page.limit.map_or_else(String::new, |limit| format!(" LIMIT {}", limit.saturating_add(1)));
        let end = format!("{} {}{at_most}", conditions.clause(), sort.order());
        let value = sort.selected(self.statements());
        let sql = select_keys(schema, &format!("{value}, "), &end);
        let mut rows = self.query(Statement::new(sql, conditions.params)).await?;
        let is_cut = rows.len() > limit;
        rows.truncate(limit);
        let last = rows.last_mut().and_then(|row| row.first_mut().map(std::mem::take));
        let keys: Vec<_> = rows.into_iter().map(|row| key_row(row.into_iter().skip(1).collect())).collect();
        let next = match (keys.last(), last) {
            (Some(key), Some(value)) if is_cut => Some(PageCursor::new(page, value, key_id(key)?.0)),
            _ => None,
        };
        Ok(KeyPage { keys, next })
    }

    /// The ids of the keys that the filter selects.
    ///
    /// # Errors
    /// As [`Database::list_keys`].
    pub async fn key_ids(&self, filter: &KeyFilter) -> Result<Vec<KeyId>> {
        let schema = &self.operator_schema().await?;
        let conditions = self.key_conditions(schema, filter, Vec::new()).await?;
        let (id, keys) = (schema.column("api_keys", "id"), schema.relation("api_keys"));
        let sql = format!("SELECT {id} FROM {keys} k {}", conditions.clause());
        let rows = self.query(Statement::new(sql, conditions.params)).await?;
        let ids = rows.iter().filter_map(|row| value::integer(row.first()?.as_deref()?).ok().map(KeyId));
        Ok(ids.collect())
    }

    /// The conditions of a filter. Their parameters come after these.
    pub(super) async fn key_conditions(
        &self,
        schema: &Schema,
        filter: &KeyFilter,
        params: Vec<SqlValue>,
    ) -> Result<Conditions> {
        let user = match &filter.user {
            Some(user) => Some(user_id(&self.find_user(user).await?)?.0),
            None => None,
        };
        let mut conditions = Conditions::with_params(params);
        filter.add_to(&mut conditions, schema, self.statements(), user, clock::wall())?;
        Ok(conditions)
    }

    /// The keys with this id or prefix, newest first.
    ///
    /// # Errors
    /// [`ManagementError`] when the database does not answer.
    pub async fn find_keys(&self, id_or_prefix: &str) -> Result<Vec<DisplayRow>> {
        let schema = &self.operator_schema().await?;
        let (mut either, mut params) = (Vec::new(), Vec::new());
        let by_id = id_or_prefix.parse::<i64>().is_ok_and(|id| schema.holds_integer("api_keys", "id", id));
        for (column, fits) in [("id", by_id), ("key_prefix", id_or_prefix.len() == Prefix::LEN)] {
            if fits {
                params.push(Some(id_or_prefix.to_owned()));
                let name = format!("k.{}", schema.name("api_keys", column));
                let mut same = format!("{name} = {}", schema.param(params.len(), "api_keys", column));
                if column == "key_prefix" {
                    same.push_str(&format!(" AND {}", self.statements().is_exactly(&name, params.len())));
                }
                either.push(same);
            }
        }
        if either.is_empty() {
            return Ok(Vec::new());
        }
        self.keys(&format!("WHERE {}", either.join(" OR ")), params).await
    }

    /// The one key with this id or prefix.
    ///
    /// # Errors
    /// [`ManagementError::Refused`] when there is none, or more than one.
    pub async fn find_key(&self, id_or_prefix: &str) -> Result<DisplayRow> {
        let mut keys = self.find_keys(id_or_prefix).await?;
        match keys.len() {
            1 => Ok(keys.remove(0)),
            0 => Err(ManagementError::Refused(format!(
                "no key has the id or prefix {id_or_prefix}; see `keystile keys list --all`"
            ))),
            _ => Err(ManagementError::Refused(format!(
                "{} keys have the prefix {id_or_prefix}: give the id of one, which is {}",
                keys.len(),
                keys.iter().map(|key| key.text("id")).collect::<Vec<_>>().join(" or ")
            ))),
        }
    }

    /// The key of this credential, proven by its hash. `None` when it belongs to no key.
    ///
    /// # Errors
    /// [`ManagementError`] when the database does not answer.
    pub async fn identify(&self, credential: &Credential) -> Result<Option<DisplayRow>> {
        let lookup = self.records(credential.prefix(), Timestamps::now()).await?;
        for record in lookup.records.iter() {
            let (credential, hash) = (credential.clone(), record.hash.clone());
            if blocking(move || proves(&credential, &hash)).await? {
                return self.find_key(&record.id.0.to_string()).await.map(Some);
            }
        }
        Ok(None)
    }

    /// Revokes the one key with this id or prefix, and every key that it was rotated from or to, unless `only` this key
    /// is meant.
    ///
    /// # Errors
    /// [`ManagementError::Refused`] when there is none, or more than one.
    pub async fn revoke_key(&self, id_or_prefix: &str, only: bool) -> Result<RevokedKeys> {
        let key = self.find_key(id_or_prefix).await?;
        let id = key_id(&key)?;
        let schema = &self.operator_schema().await?;
        let values = self.revocation(schema).await?;
        let mut statements = vec![update(schema, "api_keys", id.0, values.clone())];
        if !only && schema.has_rotations() {
            // A rotation at the same time holds the lock on the row. The second statement sees its successor.
            statements.push(revoke_chain(schema, id.0, values));
        }
        self.change(Action::Revoke, statements, false, Box::new(|_| ())).await?.into_result()?;
        let mut others = Vec::new();
        if !only {
            for other in self.other_members(id.0).await? {
                if let [other] = &self.find_keys(&other.to_string()).await?[..] {
                    others.push(other.clone().inactive()?);
                }
            }
        }
        Ok(RevokedKeys { key: self.describe_key(&id.0.to_string()).await?.inactive()?, others })
    }

    async fn keys(&self, filter: &str, params: Vec<SqlValue>) -> Result<Vec<DisplayRow>> {
        let schema = &self.operator_schema().await?;
        let sql = select_keys(schema, "", &format!("{filter} {}", schema.newest_first()));
        let rows = self.query(Statement::new(sql, params)).await?;
        Ok(rows.into_iter().map(key_row).collect())
    }

    /// The settings of the new key, by column.
    fn settings(&self, new: &NewKey) -> Vec<ColumnValue> {
        let list = |list: &[String]| (!list.is_empty()).then(|| write_list(list));
        let number = |number: Option<u64>| number.map(|number| number.to_string());
        let mut values = vec![
            ("name", new.name.clone()),
            ("description", new.description.clone()),
            ("expires_at", new.expires_at.and_then(|end| self.time(end))),
            ("scopes", list(&new.scopes)),
            ("tags", list(&new.tags)),
            ("allowed_models", list(&new.models)),
            ("allowed_endpoints", list(&new.endpoints)),
            ("allowed_ips", list(&new.ips)),
            ("allowed_chatbots", list(&new.chatbots)),
            ("allowed_agents", list(&new.agents)),
            ("allowed_extract_templates", list(&new.extract_templates)),
            ("rate_limit_per_minute", number(new.limits.minute)),
            ("rate_limit_per_hour", number(new.limits.hour)),
            ("rate_limit_per_day", number(new.limits.day)),
            ("budget_limit_cents", new.budget_limit_cents.map(|cents| cents.to_string())),
            ("budget_type", new.budget_type.clone()),
        ];
        values.retain(|(_, value)| value.is_some());
        values
    }

    /// The values that every new key has, where there is a column.
    pub(super) fn defaults(&self, new: &NewKey) -> [ColumnValue; 7] {
        let flag = |flag: bool| Some(if flag { "1" } else { "0" }.to_owned());
        [
            ("is_active", flag(true)),
            ("is_unlimited", flag(new.budget_limit_cents.is_none())),
            ("created_at", self.now()),
            ("updated_at", self.now()),
            ("total_requests", Some("0".into())),
            ("total_tokens", Some("0".into())),
            ("total_cost", Some("0".into())),
        ]
    }
}

/// Selects what [`key_row`] reads, after `first`.
pub(super) fn select_keys(schema: &Schema, first: &str, end: &str) -> String {
    format!(
        "SELECT {first}{}, {} FROM {} {end}",
        schema.select("api_keys", shown().map(|column| column.name)),
        schema.select("users", [EMAIL.name]),
        schema.joined(),
    )
}

/// A key as operators see it, with its version.
pub(super) fn key_row(row: Row) -> DisplayRow {
    let email = Column { name: "user_email", ..EMAIL };
    DisplayRow::new(shown().chain([email]), row).with_version()
}

fn shown() -> impl Iterator<Item = Column> {
    API_KEYS.iter().copied().filter(|column| column.kind != ColumnKind::Hash)
}

pub(super) fn key_id(key: &DisplayRow) -> Result<KeyId> {
    let id = key.get("id").as_i64().map(KeyId);
    id.ok_or_else(|| ManagementError::Refused("the key's id is no whole number".into()))
}

/// Revokes the active keys of a key's chain.
fn revoke_chain(schema: &Schema, id: i64, mut values: Vec<ColumnValue>) -> Statement {
    values.retain(|(column, _)| schema.has("api_keys", column));
    let sql = format!(
        "UPDATE {} AS k SET {} WHERE k.id {} AND lower({}) NOT IN ('0', 'f', 'false')",
        schema.relation("api_keys"),
        assignments(schema, "api_keys", &values, 0),
        is_in_chain_of(schema, id),
        schema.column("api_keys", "is_active"),
    );
    Statement::new(sql, values.into_iter().map(|(_, value)| value).collect::<Vec<_>>())
}

/// The error after [`DRAWS`] keys of this brand.
pub(super) fn no_new_prefix(brand: &Brand) -> ManagementError {
    ManagementError::Refused(format!(
        "--brand {brand}: {DRAWS} keys in a row began like one that exists; choose a shorter brand"
    ))
}

/// Whether the credential has this hash. bcrypt takes a part of a second.
pub(super) fn proves(credential: &Credential, hash: &KeyHash) -> bool {
    match hash.kind() {
        HashKind::Bcrypt(hash) => {
            bcrypt::verify(credential.expose(), hash.expose().unwrap_or_default()).unwrap_or(false)
        }
        HashKind::Sha256(hash) => hash.matches(&Sha256Hash::of(credential), None),
    }
}

pub(super) async fn hash(credential: Credential, cost: u32) -> Result<String> {
    let hashed = blocking(move || bcrypt::hash(credential.expose(), cost)).await?;
    hashed.map_err(|error| ManagementError::Refused(format!("--cost {cost}: {error}")))
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let work = tokio::task::spawn_blocking(work).await;
    work.map_err(|_| ManagementError::Refused("bcrypt ended early; please report this".into()))
}
