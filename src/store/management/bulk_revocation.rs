//! Revokes many keys: all of them or none.

use std::collections::{BTreeSet, VecDeque};

use super::{
    Action, ColumnValue, Database, KeyFilter, KeyState, ManagementError, Result, Schema, Statement,
    assignments, holds_time, key_filter::is_active, needs_column,
};
use crate::{
    credential::Prefix,
    record::KeyId,
    store::{
        decode::value,
        statement::{Progress, Rows, Step},
    },
};

/// Keys that were revoked together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BulkRevocation {
    /// Their ids.
    pub keys: Vec<KeyId>,
    /// The prefix of one of them, if one is a prefix that credentials can have.
    pub prefix: Option<Prefix>,
}

/// Rows that one statement changes.
const BATCH: usize = 500;

impl Database {
    /// The values that revoke a key. Where there is `deleted_at`, and this role may write it, it is for good. A role
    /// that may only disable keys must be able to revoke one.
    pub(super) async fn revocation(&self, schema: &Schema) -> Result<Vec<ColumnValue>> {
        needs_column(schema, "api_keys", "is_active")?;
        let mut values = vec![("is_active", Some("0".into()))];
        if holds_time(schema, "api_keys", "updated_at") {
            values.push(("updated_at", self.now()));
        }
        if holds_time(schema, "api_keys", "deleted_at") {
            let may_write = match self.statements().may_update(schema, "api_keys", "deleted_at") {
                Some(right) => !self.query(right).await?.is_empty(),
                None => true,
            };
            if may_write {
                values.push(("deleted_at", self.now()));
            }
        }
        Ok(values)
    }

    /// Revokes those of these keys that the filter still selects when they are locked, all of them or none. `progress`
    /// receives the number of keys done.
    ///
    /// # Errors
    /// [`ManagementError`] when the database fails, or keeps one of them active. Nothing is changed then.
    pub async fn revoke_keys(
        &self,
        filter: &KeyFilter,
        keys: &[KeyId],
        progress: Progress,
    ) -> Result<BulkRevocation> {
        let filter = KeyFilter { state: KeyState::Active, ..filter.clone() };
        let schema = self.operator_schema().await?;
        let ids: Vec<_> = keys.iter().map(|key| key.0).collect();
        let (among, ids) = self.statements().is_one_of(&id_column(&schema, "k."), id_kind(&schema), &ids);
        let mut conditions = self.key_conditions(&schema, &filter, vec![Some(ids)]).await?;
        conditions.add(among);
        let sql = format!(
            "SELECT {}, {} FROM {} k {} ORDER BY {}{}",
            schema.column("api_keys", "id"),
            schema.column("api_keys", "key_prefix"),
            schema.relation("api_keys"),
            conditions.clause(),
            // All who lock several keys do so in the same order.
            id_column(&schema, "k."),
            self.statements().lock_rows("k"),
        );
        let lock = Statement::new(sql, conditions.params);
        let values = self.revocation(&schema).await?;
        let database = self.clone();
        let (mut locked, mut batches) = (None, VecDeque::new());
        let mut done = 0;
        self.decide_change(Action::Revoke, lock, move |rows| {
            let Some(revoked) = &locked else {
                let revoked = BulkRevocation::of(rows)?;
                for batch in revoked.keys.chunks(BATCH) {
                    batches.push_back((batch.len(), database.revoke_batch(&schema, batch, &values)));
                }
                if !revoked.keys.is_empty() {
                    batches.push_back((0, database.count_active(&schema, &revoked.keys)));
                }
                let first = batches.pop_front();
                return Ok(match first {
                    Some((size, statement)) => {
                        (locked, done) = (Some(revoked), size);
                        Step::Run(statement)
                    }
                    None => Step::Commit(revoked),
                });
            };
            progress(done);
            match batches.pop_front() {
                Some((size, statement)) => {
                    done += size;
                    Ok(Step::Run(statement))
                }
                None => none_is_active(&rows).map(|()| Step::Commit(revoked.clone())),
            }
        })
        .await
    }

    fn revoke_batch(&self, schema: &Schema, keys: &[KeyId], values: &[ColumnValue]) -> Statement {
        let ids: Vec<_> = keys.iter().map(|key| key.0).collect();
        let (among, ids) = self.statements().is_one_of(&id_column(schema, ""), id_kind(schema), &ids);
        let assignments = assignments(schema, "api_keys", values, 1);
        let sql = format!("UPDATE {} SET {assignments} WHERE {among}", schema.relation("api_keys"));
        let params = [Some(ids)].into_iter().chain(values.iter().map(|(_, value)| value.clone()));
        Statement::new(sql, params.collect::<Vec<_>>())
    }

    /// Row-level security or a trigger may have ignored an update without an error.
    fn count_active(&self, schema: &Schema, keys: &[KeyId]) -> Statement {
        let ids: Vec<_> = keys.iter().map(|key| key.0).collect();
        let (among, ids) = self.statements().is_one_of(&id_column(schema, "k."), id_kind(schema), &ids);
        let sql = format!(
            "SELECT CAST(count(*) AS text) FROM {} k WHERE ({among}) AND {}",
            schema.relation("api_keys"),
            is_active(schema, self.statements()),
        );
        Statement::new(sql, [Some(ids)])
    }
}

impl BulkRevocation {
    fn of(rows: Rows) -> Result<Self> {
        let mut revoked = Self { keys: Vec::with_capacity(rows.len()), prefix: None };
        let mut ids = BTreeSet::new();
        for row in rows {
            let mut values = row.into_iter().map(Option::unwrap_or_default);
            let [id, prefix] = std::array::from_fn(|_| values.next().unwrap_or_default());
            let id = value::integer(&id).map_err(|_| {
                ManagementError::Refused("a key's id is no whole number; nothing was revoked".into())
            })?;
            revoked.prefix = revoked.prefix.or_else(|| Prefix::parse(&prefix).ok());
            if ids.insert(id) {
                revoked.keys.push(KeyId(id));
            }
        }
        Ok(revoked)
    }
}

fn id_column(schema: &Schema, alias: &str) -> String {
    format!("{alias}{}", schema.name("api_keys", "id"))
}

fn id_kind(schema: &Schema) -> &str {
    schema.kind("api_keys", "id").unwrap_or("bigint")
}

fn none_is_active(rows: &Rows) -> Result<()> {
    let count = rows.first().and_then(|row| row.first()?.as_deref()).unwrap_or_default();
    if count == "0" {
        return Ok(());
    }
    Err(ManagementError::Refused(format!(
        "nothing was revoked: the database left {count} of the rows as they are; row-level security or a trigger of its \
         own keeps them so"
    )))
}
