//! The triggers with which SQLite logs the changes of keys, users, roles and budgets.
//!
//! A trigger names the columns that it watches in `UPDATE OF`, where SQLite tolerates that a column is dropped later.
//! Only spending and generated columns have to be compared.

use crate::store::{
    schema::Schema,
    watched_tables::{EntryKind, SharedSpending, WatchedColumn, WatchedTable},
};

/// A trigger: its name, and the statement that makes it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(super) struct TriggerStatement {
    pub(super) name: String,
    pub(super) sql: String,
}

/// The statements that make the log, from none or from the one of an earlier version.
pub(super) fn log(schema: &Schema) -> Vec<String> {
    const LOG: &str = "CREATE TABLE keystile_changes (
    id integer PRIMARY KEY AUTOINCREMENT,
    prefix text, -- a key; an entry without prefix, user and key stands for every key
    user_id integer, -- a user, whose keys a reader looks up
    key_id integer, -- a key, whose prefix a reader looks up
    nonce integer NOT NULL DEFAULT (abs(random() >> 11)),
    changed_at timestamp NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    source text NOT NULL DEFAULT 'change', -- or 'command'
    seen_at timestamp)";
    let statements: &[&str] = match (schema.has_log(), schema.has_table("keystile_changes")) {
        (true, _) => &[],
        (false, false) => &[LOG],
        // The numbers of its changes continue, for readers of the earlier version.
        (false, true) => &[
            "ALTER TABLE keystile_changes RENAME TO keystile_changes_1",
            LOG,
            "INSERT INTO keystile_changes (id, prefix, changed_at, source, seen_at)
            SELECT id, prefix, changed_at, source, seen_at FROM keystile_changes_1",
            "DROP TABLE keystile_changes_1",
        ],
    };
    statements.iter().map(|statement| (*statement).to_owned()).collect()
}

/// The triggers of all tables.
pub(super) fn triggers(schema: &Schema, tables: &[WatchedTable]) -> Vec<TriggerStatement> {
    tables.iter().flat_map(|table| of_table(schema, table)).collect()
}

fn of_table(schema: &Schema, table: &WatchedTable) -> Vec<TriggerStatement> {
    let WatchedTable { name, .. } = table;
    let trigger = |suffix: &str, event: &str, condition: &str, entries: &[EntryInsert]| {
        let inserts: Vec<_> = entries.iter().map(EntryInsert::insert).collect();
        let name = format!("keystile_changed_{name}_{suffix}");
        let sql = format!(
            "CREATE TRIGGER {name} {event} ON {table} FOR EACH ROW {condition}BEGIN
                {}; END",
            inserts.join(";\n                "),
            table = table.name,
        );
        TriggerStatement { name, sql }
    };
    let (old, new) = (entry(table, "OLD"), entry(table, "NEW"));
    let both: Vec<_> = [&old, &new].into_iter().cloned().chain(chain_entry(table)).collect();
    let deleted: Vec<_> = [old].into_iter().chain(chain_entry(table)).collect();
    let is_generated = |column: &&WatchedColumn| schema.is_generated(name, column.name);
    let stored = table.columns.iter().filter(|column| !is_generated(column));
    let of = stored.map(|column| column.name).collect::<Vec<_>>().join(", ");
    let generated = table.columns.iter().filter(is_generated);
    let generated = generated.map(|column| format!("OLD.{0} IS NOT NEW.{0}", column.name));
    let spent = spent_of(table, "OLD").zip(spent_of(table, "NEW"));
    let spent = spent.map(|(old, new)| format!("({old}) IS NOT ({new})"));
    let compared = generated.chain(spent).collect::<Vec<_>>().join(" OR ");
    let mut triggers = vec![
        trigger("insert", "AFTER INSERT", "", &[new]),
        trigger("delete", "AFTER DELETE", "", &deleted),
        trigger("update", &format!("AFTER UPDATE OF {of}"), "", &both),
    ];
    if !compared.is_empty() {
        triggers.push(trigger("compare", "AFTER UPDATE", &format!("WHEN {compared} "), &both));
    }
    if let Some(replaced) = replaced(schema, table) {
        // `OR REPLACE` deletes rows without firing the trigger of a deletion.
        let unique = unique(schema, table.name).concat();
        let unique = unique.iter().map(|column| format!("\"{column}\"")).collect::<Vec<_>>().join(", ");
        triggers.push(trigger("replace", "BEFORE INSERT", "", std::slice::from_ref(&replaced)));
        triggers.push(trigger("replace_by_update", &format!("BEFORE UPDATE OF {unique}"), "", &[replaced]));
    }
    triggers
}

/// Whether the spending of the row and of those that share its budget has reached the limit.
fn spent_of(table: &WatchedTable, row: &str) -> Option<String> {
    let Some(SharedSpending { amount, limit, by_others, .. }) = &table.shared else {
        return table.spent_of(row);
    };
    let by_others = by_others.replace("{row}", row);
    Some(format!("COALESCE({row}.{amount}, 0) + {by_others} >= {row}.{limit}"))
}

/// The entry for the other keys of a key's chain, whose spending adds up. That of a budget names its key already.
fn chain_entry(table: &WatchedTable) -> Option<EntryInsert> {
    let shared = table.shared.as_ref().filter(|_| table.entry_kind == EntryKind::Key)?;
    let (key, is_shared) = (&shared.key, shared.is_shared.replace("{row}", "OLD"));
    Some(EntryInsert::new("key_id", format!("SELECT OLD.{key} WHERE {is_shared}")))
}

/// An entry of the log: the columns that name its key or user, and a query for their values.
#[derive(Clone)]
struct EntryInsert {
    columns: &'static str,
    query: String,
}

impl EntryInsert {
    fn new(columns: &'static str, query: impl Into<String>) -> Self {
        Self { columns, query: query.into() }
    }

    fn insert(&self) -> String {
        format!("INSERT INTO keystile_changes ({}) {}", self.columns, self.query)
    }
}

fn entry(table: &WatchedTable, row: &str) -> EntryInsert {
    match table.entry_kind {
        EntryKind::AllKeys => EntryInsert::new("prefix", "VALUES (NULL)"),
        EntryKind::Rotation => EntryInsert::new(
            "key_id",
            format!("VALUES ({row}.predecessor_id), ({row}.successor_id), ({row}.limit_id)"),
        ),
        EntryKind::RotatedBudget => EntryInsert::new("key_id", format!("VALUES ({row}.key_id)")),
        EntryKind::Key => {
            EntryInsert::new("prefix", format!("SELECT {row}.key_prefix WHERE {row}.key_prefix IS NOT NULL"))
        }
        EntryKind::User => EntryInsert::new("user_id", format!("SELECT {row}.id WHERE {row}.id IS NOT NULL")),
        EntryKind::Budget => EntryInsert::new(
            "user_id, key_id",
            format!(
                "SELECT CASE WHEN {row}.api_key_id IS NULL THEN {row}.user_id END, {row}.api_key_id
                WHERE {row}.api_key_id IS NOT NULL OR {row}.user_id IS NOT NULL"
            ),
        ),
    }
}

/// The entries for rows that `OR REPLACE` deletes: those with the new row's value in a unique index.
fn replaced(schema: &Schema, table: &WatchedTable) -> Option<EntryInsert> {
    let conflicts = unique(schema, table.name).into_iter().map(|columns| {
        let equal = columns.iter().map(|column| format!("\"{column}\" = NEW.\"{column}\""));
        format!("({})", equal.collect::<Vec<_>>().join(" AND "))
    });
    let conflicts = conflicts.collect::<Vec<_>>().join(" OR ");
    let select = |columns, values: &str, condition: &str| {
        let name = table.name;
        EntryInsert::new(columns, format!("SELECT {values} FROM {name} WHERE ({conflicts}) AND {condition}"))
    };
    match table.entry_kind {
        EntryKind::AllKeys => None,
        EntryKind::Rotation => {
            let ids = ["predecessor_id", "successor_id", "limit_id"];
            let ids = ids.map(|id| format!("SELECT {id} FROM {} WHERE {conflicts}", table.name));
            Some(EntryInsert::new("key_id", ids.join(" UNION ALL ")))
        }
        EntryKind::RotatedBudget => Some(select("key_id", "key_id", "key_id IS NOT NULL")),
        EntryKind::Key => Some(select("prefix", "key_prefix", "key_prefix IS NOT NULL")),
        EntryKind::User => Some(select("user_id", "id", "id IS NOT NULL")),
        EntryKind::Budget => Some(select(
            "user_id, key_id",
            "CASE WHEN api_key_id IS NULL THEN user_id END, api_key_id",
            "(api_key_id IS NOT NULL OR user_id IS NOT NULL)",
        )),
    }
}

/// The unique keys of a table. The row number is one of them, and has no index.
pub(super) fn unique(schema: &Schema, table: &str) -> Vec<Vec<String>> {
    let indexes = schema.unique(table).map(<[String]>::to_vec);
    let row_number = schema.has(table, "id").then(|| vec!["id".to_owned()]);
    indexes.chain(row_number).collect()
}
