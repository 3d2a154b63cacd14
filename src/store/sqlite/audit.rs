//! The triggers with which SQLite audits the changes of keys, users, roles and budgets.
//!
//! SQLite cannot catch an error in a trigger. So a trigger reads a column in a way that survives its removal: a name
//! that the row of the table does not have is that of a NULL around it. A row is read from its table before a change
//! and after it, since `OLD` and `NEW` have no such way.

use super::triggers::{TriggerStatement, unique};
use crate::store::{
    actor::{Action, Actor},
    audited_tables::{AUDIT, AuditedTable, RowReferences, SECRET, audited_tables, written_tables},
    schema::Schema,
    statement::Statement,
    watched_tables::WatchedColumn,
};

/// The log, the actor of the transaction that runs, and rows as they were before the statement that runs.
pub(super) const TABLES: [&str; 3] = [
    "CREATE TABLE IF NOT EXISTS keystile_audit (
    id integer PRIMARY KEY AUTOINCREMENT,
    changed_at timestamp NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    source text NOT NULL, -- sql, or what the actor is: user, token, client, program
    actor text,
    origin text, -- the host or address of the actor
    action text NOT NULL,
    table_name text NOT NULL,
    row_id text,
    label text, -- the prefix of a key, the email of a user
    key_id text, -- the key that the row concerns
    user_id text, -- the user whom the row concerns
    before_values text, -- JSON
    after_values text)",
    "CREATE TABLE IF NOT EXISTS keystile_audit_actor (source text, actor text, origin text, action text)",
    "CREATE TABLE IF NOT EXISTS keystile_audit_before (table_name text, row_id, is_conflict integer, label text,
    key_id text, user_id text, row_values text)",
];

/// Makes the actor known until the end of the transaction. Returns no row where the audit log would not record a change;
/// also where it would not record each column, unless the action ends access.
pub(super) fn begin(schema: &Schema, actor: &Actor, action: Action) -> Vec<Statement> {
    if !schema.has_table(AUDIT) {
        return Vec::new();
    }
    let unrecorded = if action.ends_access() { "" } else { UNRECORDED };
    let check = format!("SELECT 'complete' WHERE NOT EXISTS ({MISSING}{unrecorded})");
    let tell = "INSERT INTO keystile_audit_actor SELECT ?1 ->> 'kind', ?1 ->> 'name', ?1 ->> 'origin', ?1 ->> 'action'";
    vec![
        Statement::new(check, [Some(expected_parts(schema, &written_tables(schema, action)))]).required(),
        end_statement(),
        Statement::new(tell, [Some(actor.to_json(action))]),
    ]
}

pub(super) fn end(schema: &Schema) -> Option<Statement> {
    schema.has_table(AUDIT).then(end_statement)
}

fn end_statement() -> Statement {
    Statement::plain("DELETE FROM keystile_audit_actor")
}

/// Selects what is wrong with the audit log, as rows of a kind and a text.
pub(super) fn state(schema: &Schema) -> Statement {
    let sql = format!(
        "SELECT 'problem', 'no trigger ' || name || ' of this version' FROM ({MISSING}{OTHER_VERSION})"
    );
    Statement::new(sql, [Some(expected(schema, &audited_tables(schema)))])
}

/// Selects the names of the triggers in `?1` that the file does not have.
const MISSING: &str = "SELECT n.value ->> 'name' AS name FROM json_each(?1) n
    WHERE NOT EXISTS (SELECT 1 FROM sqlite_schema t WHERE t.type = 'trigger'
        AND t.name = n.value ->> 'name')";

/// Adds to [`MISSING`] those that have another text.
const OTHER_VERSION: &str = " OR NOT EXISTS (SELECT 1 FROM sqlite_schema t WHERE t.type = 'trigger'
        AND t.sql = n.value ->> 'sql')";

/// Adds to [`MISSING`] those without a part in `?1`. Unlike another text, that is not so when a column was dropped or an
/// index was made since.
const UNRECORDED: &str = " OR EXISTS (SELECT 1 FROM sqlite_schema t, json_each(n.value -> 'parts') p
        WHERE t.type = 'trigger' AND t.name = n.value ->> 'name' AND instr(t.sql, p.value) = 0)";

/// The triggers by name, and in those that record rows the part for each column that there is now.
fn expected_parts(schema: &Schema, tables: &[AuditedTable]) -> String {
    let triggers = tables.iter().flat_map(|table| {
        let parts: Vec<_> = table.columns.iter().map(|column| recorded_as(column.name)).collect();
        let secret = table.secret.iter().map(|column| format!("SELECT {}", quoted(column.name)));
        let of_update: Vec<_> = parts.iter().cloned().chain(secret).collect();
        let prefix = trigger_name(table.name, "");
        AuditTriggers { schema, table }.all().into_iter().map(move |TriggerStatement { name, .. }| {
            let parts = match name.strip_prefix(&prefix) {
                Some("update") => &*of_update,
                Some("insert" | "delete" | "before") => &*parts,
                _ => &[],
            };
            serde_json::json!({ "name": name, "parts": parts })
        })
    });
    serde_json::Value::from_iter(triggers).to_string()
}

fn trigger_name(table: &str, suffix: &str) -> String {
    format!("keystile_audited_{table}_{suffix}")
}

/// How the values of a row begin for one column.
fn recorded_as(column: &str) -> String {
    format!("{}, CASE", quoted(column))
}

fn quoted(column: &str) -> String {
    format!("'{column}'")
}

fn expected(schema: &Schema, tables: &[AuditedTable]) -> String {
    serde_json::to_string(&triggers_of(schema, tables)).unwrap_or_default()
}

/// The triggers of all tables.
pub(super) fn triggers(schema: &Schema) -> Vec<TriggerStatement> {
    triggers_of(schema, &audited_tables(schema))
}

fn triggers_of(schema: &Schema, tables: &[AuditedTable]) -> Vec<TriggerStatement> {
    tables.iter().flat_map(|table| AuditTriggers { schema, table }.all()).collect()
}

/// The triggers of one table.
struct AuditTriggers<'a> {
    schema: &'a Schema,
    table: &'a AuditedTable,
}

impl AuditTriggers<'_> {
    fn all(&self) -> Vec<TriggerStatement> {
        let name = self.table.name;
        let is_generated = |column: &WatchedColumn| self.schema.is_generated(name, column.name);
        let columns = || self.table.columns.iter().chain(&self.table.secret);
        // A generated column cannot be named, so the triggers of its table look at every update.
        let of = if columns().any(is_generated) {
            String::new()
        } else {
            format!(" OF {}", columns().map(|column| column.name).collect::<Vec<_>>().join(", "))
        };
        let forget = |id: &str, is_conflict: u8| {
            format!(
                "DELETE FROM keystile_audit_before WHERE table_name = '{name}' AND is_conflict = {is_conflict}{id}"
            )
        };
        let forget_row = || forget(" AND row_id IS OLD.id", 0);
        let unique = unique(self.schema, name);
        let conflicts = |besides: &str| {
            let groups = unique.iter().map(|columns| {
                let equal = columns.iter().map(|column| format!("x.\"{column}\" = NEW.\"{column}\""));
                format!("({})", equal.collect::<Vec<_>>().join(" AND "))
            });
            format!("({}){besides}", groups.collect::<Vec<_>>().join(" OR "))
        };
        let unique_columns = unique.concat().iter().map(|column| format!("\"{column}\"")).collect::<Vec<_>>();
        let of_unique = format!(" OF {}", unique_columns.join(", "));
        [
            self.trigger("insert", "AFTER INSERT", &[self.inserted()]),
            self.trigger("delete", "BEFORE DELETE", &[self.deleted(), forget(" AND row_id IS OLD.id", 1)]),
            self.trigger(
                "before",
                &format!("BEFORE UPDATE{of}"),
                &[forget_row(), self.remember("x.id = OLD.id", 0)],
            ),
            self.trigger("update", &format!("AFTER UPDATE{of}"), &[self.updated(), forget_row()]),
            // `OR REPLACE` deletes rows without firing the trigger of a deletion. Whether it does is known afterwards.
            self.trigger("conflict", "BEFORE INSERT", &[forget("", 1), self.remember(&conflicts(""), 1)]),
            self.trigger("replace", "AFTER INSERT", &[self.replaced(), forget("", 1)]),
            self.trigger(
                "conflict_by_update",
                &format!("BEFORE UPDATE{of_unique}"),
                &[forget("", 1), self.remember(&conflicts(" AND x.id <> OLD.id"), 1)],
            ),
            self.trigger(
                "replace_by_update",
                &format!("AFTER UPDATE{of_unique}"),
                &[self.replaced(), forget("", 1)],
            ),
        ]
        .into()
    }

    fn trigger(&self, suffix: &str, event: &str, statements: &[String]) -> TriggerStatement {
        let table = self.table.name;
        let name = trigger_name(table, suffix);
        let sql = format!(
            "CREATE TRIGGER {name} {event} ON {table} FOR EACH ROW BEGIN\n    {}; END",
            statements.join(";\n    ")
        );
        TriggerStatement { name, sql }
    }

    /// NULL under the name of each column, for columns that are gone.
    fn absent(&self) -> String {
        let names = self.all_names().into_iter().map(|name| format!("NULL AS {name}"));
        format!("(SELECT {}) AS absent", names.collect::<Vec<_>>().join(", "))
    }

    fn all_names(&self) -> Vec<&'static str> {
        let RowReferences { label, key_id, user_id, .. } = self.table.references(self.schema);
        let references = [label, key_id, user_id].into_iter().flatten().map(|column| column.name);
        let mut names: Vec<_> =
            self.table.columns.iter().map(|column| column.name).chain(references).collect();
        names.retain(|name| *name != "id");
        // A table may have none of them.
        names.push("keystile_absent");
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The row with this id as one JSON object, without what JSON cannot hold.
    fn values(&self, id: &str) -> String {
        let values = self.table.columns.iter().map(|WatchedColumn { name, .. }| {
            format!(
                "{} WHEN typeof({name}) = 'blob' THEN hex({name})
                    WHEN {name} IN (9e999, -9e999) THEN CAST({name} AS TEXT) ELSE {name} END",
                recorded_as(name)
            )
        });
        let table = self.table.name;
        format!(
            "(SELECT json_object({}) FROM {table} WHERE id = {id})",
            values.collect::<Vec<_>>().join(", ")
        )
    }

    /// The label, key and user of the row with this id.
    fn references(&self, id: &str) -> String {
        let RowReferences { label, key_id, user_id, table, .. } = self.table.references(self.schema);
        let value = |column: Option<WatchedColumn>| {
            column.map_or_else(
                || "NULL".to_owned(),
                |column| format!("(SELECT CAST({} AS TEXT) FROM {table} WHERE id = {id})", column.name),
            )
        };
        [label, key_id, user_id].map(value).join(", ")
    }

    /// Inserts an entry. `what` are expressions for its row, label, key, user, and values before and after.
    fn entry(action: &str, table: &str, what: &str, from: &str) -> String {
        let actor = |column: &str| format!("(SELECT {column} FROM keystile_audit_actor)");
        format!(
            "INSERT INTO keystile_audit (source, actor, origin, action, table_name, row_id, label, key_id, user_id,
        before_values, after_values)
    SELECT COALESCE({}, 'sql'), {}, {}, COALESCE({}, '{action}'), '{table}', {what} FROM {from}",
            actor("source"),
            actor("actor"),
            actor("origin"),
            actor("action"),
        )
    }

    fn inserted(&self) -> String {
        let (references, values) = (self.references("NEW.id"), self.values("NEW.id"));
        let what = format!("NEW.id, {references}, NULL, json_patch('{{}}', {values})");
        Self::entry("insert", self.table.name, &what, &self.absent())
    }

    fn deleted(&self) -> String {
        let (references, values) = (self.references("OLD.id"), self.values("OLD.id"));
        let what = format!("OLD.id, {references}, json_patch('{{}}', {values}), NULL");
        Self::entry("delete", self.table.name, &what, &self.absent())
    }

    /// Stores rows, named `x`, as they are now.
    fn remember(&self, condition: &str, is_conflict: u8) -> String {
        let (name, references, values) = (self.table.name, self.references("x.id"), self.values("x.id"));
        format!(
            "INSERT INTO keystile_audit_before SELECT '{name}', x.id, {is_conflict}, {references}, {values}
        FROM {name} AS x, {} WHERE {condition}",
            self.absent()
        )
    }

    /// An entry with the columns that differ, if there are any.
    fn updated(&self) -> String {
        let (name, references) = (self.table.name, self.references("NEW.id"));
        let (after, absent) = (self.values("NEW.id"), self.absent());
        let before = format!(
            "(SELECT row_values FROM keystile_audit_before
            WHERE table_name = '{name}' AND is_conflict = 0 AND row_id IS OLD.id)"
        );
        let secret = self.table.secret.as_ref().map(|WatchedColumn { name, .. }| {
            let [old, new] = SECRET;
            format!("UNION ALL SELECT {}, '{old}', '{new}' WHERE OLD.{name} IS NOT NEW.{name}", quoted(name))
        });
        let from = format!(
            "(SELECT json_group_object(key, was) AS was, json_group_object(key, is_now) AS is_now, count(*) AS n FROM (
            SELECT a.key AS key, b.value AS was, a.value AS is_now
            FROM (SELECT {after} AS row_values FROM {absent}) AS r,
                json_each(r.row_values) AS a, json_each({before}) AS b
            WHERE b.key = a.key AND a.value IS NOT b.value {})) AS changes, {absent} WHERE changes.n > 0",
            secret.unwrap_or_default()
        );
        let what = format!("NEW.id, {references}, changes.was, changes.is_now");
        Self::entry("update", name, &what, &from)
    }

    /// Entries for the rows that were deleted for a new row.
    fn replaced(&self) -> String {
        let name = self.table.name;
        let from = format!(
            "keystile_audit_before AS b WHERE b.table_name = '{name}' AND b.is_conflict = 1
        AND (b.row_id = NEW.id OR NOT EXISTS (SELECT 1 FROM {name} WHERE id = b.row_id))"
        );
        let what = "b.row_id, b.label, b.key_id, b.user_id, json_patch('{}', b.row_values), NULL";
        Self::entry("delete", name, what, &from)
    }
}
