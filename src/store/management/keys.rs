//! Keys: list, find, revoke.

use std::num::NonZeroUsize;

use super::{
    Action, ColumnValue, Database, DisplayRow, KeyFilter, KeyPage, ManagementError, PageCursor, PageRequest,
    Result, Schema, SqlValue, Statement, assignments,
    chain::is_in_chain_of,
    columns::{API_KEYS, Column, ColumnKind},
    key_filter::Conditions,
    key_page::SortExpression,
    update,
    users::{EMAIL, user_id},
};
use crate::{
    clock::{self, Timestamps},
    credential::{Credential, Prefix},
    record::{HashKind, KeyHash, KeyId, Sha256Hash},
    store::{KeyStore, Row, decode::value},
};

/// What was revoked.
#[derive(Debug, Clone)]
pub struct RevokedKeys {
    /// The key itself.
    pub key: DisplayRow,
    /// The other keys of its chain.
    pub others: Vec<DisplayRow>,
}

impl Database {
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

/// Whether the credential has this hash. bcrypt takes a part of a second.
pub(super) fn proves(credential: &Credential, hash: &KeyHash) -> bool {
    match hash.kind() {
        HashKind::Bcrypt(hash) => {
            bcrypt::verify(credential.expose(), hash.expose().unwrap_or_default()).unwrap_or(false)
        }
        HashKind::Sha256(hash) => hash.matches(&Sha256Hash::of(credential), None),
    }
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let work = tokio::task::spawn_blocking(work).await;
    work.map_err(|_| ManagementError::Refused("bcrypt ended early; please report this".into()))
}
