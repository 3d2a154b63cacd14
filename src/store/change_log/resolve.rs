//! Looks up the prefixes of changed users and keys, whose entries have only ids.

use std::collections::{HashMap, HashSet};

use super::entry::{EntrySubject, LogEntry, MAX_ENTRIES};
use crate::{
    credential::Prefix,
    revocation::LoggedChange,
    store::{
        Database, SqlValue, StoreError, database::calls::Operation, decode::value::integer, schema::Schema,
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
        let of_keys = self.prefixes_by(schema, "id", keys.collect()).await?;
        let none = Vec::new();
        let mut logged = Vec::with_capacity(entries.len());
        for entry in entries {
            let prefixes = match entry.subject {
                EntrySubject::AllKeys | EntrySubject::Prefix(_) => {
                    logged.extend(entry.as_logged());
                    continue;
                }
                EntrySubject::User(id) => of_users.get(&id).unwrap_or(&none),
                EntrySubject::Key(id) => of_keys.get(&id).unwrap_or(&none),
            };
            logged.extend(prefixes.iter().map(|prefix| entry.logged(Some(*prefix))));
            if logged.len() > MAX_ENTRIES {
                break;
            }
        }
        Ok(logged)
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
