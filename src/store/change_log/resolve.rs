//! Looks up the prefixes of changed users and keys, whose entries have only ids.

use std::collections::{HashMap, HashSet};

use super::entry::{EntrySubject, LogEntry, MAX_ENTRIES};
use crate::{
    credential::Prefix,
    revocation::LoggedChange,
    store::{
        Database, SqlValue, StoreError,
        database::calls::Operation,
        decode::value::integer,
        schema::{ROTATIONS, Schema},
        statement::Statement,
    },
};

impl Database {
    /// The entries with the prefixes that they concern. It runs after the entries are read: a key that was committed
    /// before the change is found, and one that is committed later is read with the change.
    pub(super) async fn resolve(
        &self,
        schema: &Schema,
        entries: Vec<LogEntry>,
    ) -> Result<Vec<LoggedChange>, StoreError> {
        let subjects: HashSet<_> = entries.iter().map(|entry| entry.subject).collect();
        let users = subjects.iter().filter_map(|subject| match subject {
            EntrySubject::User(id) => Some(*id),
            _ => None,
        });
        let keys = subjects.iter().filter_map(|subject| match subject {
            EntrySubject::Key(id) => Some(*id),
            _ => None,
        });
        let of_users = self.prefixes_by(schema, "user_id", users.collect()).await?;
        let Some(chains) = self.chains_of(schema, keys.collect()).await? else {
            return Ok(entries.iter().map(|entry| entry.logged(None)).collect());
        };
        let members: HashSet<_> = chains.values().flatten().copied().collect();
        let of_keys = self.prefixes_by(schema, "id", members.into_iter().collect()).await?;
        let none = Vec::new();
        let mut logged = Vec::with_capacity(entries.len());
        for entry in entries {
            let prefixes = match entry.subject {
                EntrySubject::AllKeys | EntrySubject::Prefix(_) => {
                    logged.extend(entry.as_logged());
                    continue;
                }
                EntrySubject::User(id) => of_users.get(&id).unwrap_or(&none).clone(),
                EntrySubject::Key(id) => {
                    let members = chains.get(&id).into_iter().flatten();
                    members.filter_map(|member| of_keys.get(member)).flatten().copied().collect()
                }
            };
            logged.extend(prefixes.into_iter().map(|prefix| entry.logged(Some(prefix))));
            if logged.len() > MAX_ENTRIES {
                break;
            }
        }
        Ok(logged)
    }

    /// The keys of the chain of each key, itself included: a change of one may concern all of them. None if there are too
    /// many.
    async fn chains_of(
        &self,
        schema: &Schema,
        keys: Vec<i64>,
    ) -> Result<Option<HashMap<i64, HashSet<i64>>>, StoreError> {
        let mut chains: HashMap<_, _> = keys.iter().map(|key| (*key, HashSet::from([*key]))).collect();
        if keys.is_empty() || !schema.has_rotations() {
            return Ok(Some(chains));
        }
        let rotations = schema.relation(ROTATIONS);
        let is_one_of = |column: &str| self.statements().is_one_of(column, "bigint", &keys);
        let (predecessor, param) = is_one_of("f.predecessor_id");
        let ((successor, _), (first, _)) = (is_one_of("f.successor_id"), is_one_of("f.limit_id"));
        let sql = format!(
            "SELECT CAST(c.limit_id AS text), CAST(c.predecessor_id AS text), CAST(c.successor_id AS text)
            FROM {rotations} c WHERE c.limit_id IN (
                SELECT f.limit_id FROM {rotations} f WHERE {predecessor} OR {successor} OR {first})
            LIMIT {}",
            MAX_ENTRIES + 1
        );
        let rows = self.guarded_query(Operation::Changes, Statement::new(sql, [Some(param)])).await?;
        if rows.len() > MAX_ENTRIES {
            return Ok(None);
        }
        let (mut members, mut firsts) = (HashMap::<i64, Vec<i64>>::new(), HashMap::new());
        for row in rows {
            let ids: Vec<i64> = row.into_iter().flatten().filter_map(|id| id.parse().ok()).collect();
            let [first, ..] = ids[..] else { continue };
            firsts.extend(ids.iter().map(|id| (*id, first)));
            members.entry(first).or_default().extend(ids);
        }
        for (key, chain) in &mut chains {
            chain.extend(firsts.get(key).and_then(|first| members.get(first)).into_iter().flatten());
        }
        Ok(Some(chains))
    }

    /// The prefixes of the keys with one of these numbers in a column, by number.
    async fn prefixes_by(
        &self,
        schema: &Schema,
        column: &str,
        ids: Vec<i64>,
    ) -> Result<HashMap<i64, Vec<Prefix>>, StoreError> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let name = format!("k.{}", schema.name("api_keys", column));
        let kind = schema.kind("api_keys", column).unwrap_or("bigint");
        let (condition, param) = self.statements().is_one_of(&name, kind, &ids);
        let sql = format!(
            "SELECT CAST({name} AS text), CAST(k.{} AS text) FROM {} k WHERE {condition} LIMIT {}",
            schema.name("api_keys", "key_prefix"),
            schema.relation("api_keys"),
            MAX_ENTRIES + 1
        );
        let rows = self.guarded_query(Operation::Changes, Statement::new(sql, [Some(param)])).await?;
        let mut prefixes: HashMap<i64, Vec<Prefix>> = HashMap::new();
        for values in rows {
            let Ok([Some(id), Some(prefix)]) = <[SqlValue; 2]>::try_from(values) else { continue };
            if let (Ok(id), Ok(prefix)) = (integer(&id), Prefix::parse(&prefix)) {
                prefixes.entry(id).or_default().push(prefix);
            }
        }
        Ok(prefixes)
    }
}
