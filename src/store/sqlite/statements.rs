//! The SQL of SQLite.

use std::time::Duration;

use super::{audit, change_log, triggers};
use crate::{
    revocation::{Since, Snapshot},
    store::{
        actor::{Action, Actor},
        dialect::Dialect,
        schema::{PROOF_COLUMNS, PROOFS, ROTATED_BUDGETS, Schema},
        statement::{Rows, Statement},
        statements::{ColumnRef, LAST_USED_INTERVAL, Statements, UsageUpdate, UsedColumns, script, sections},
        watched_tables::WatchedTable,
    },
};

/// SQLite's statements and expressions.
pub(crate) struct SqliteStatements;

/// Generated columns (`hidden` is 2 or 3) are included, hidden columns of virtual tables (1) are not.
const SCHEMA: &str = "WITH t (name) AS (SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')
        AND lower(name) IN ('api_keys', 'users', 'roles', 'budgets', 'keystile_changes', 'keystile_proofs',
        'keystile_rotations', 'keystile_rotated_budgets', 'keystile_audit', 'keystile_management_tokens'))
    SELECT 'column', lower(t.name), c.name, c.type FROM t JOIN pragma_table_xinfo(t.name) c WHERE c.hidden <> 1
    UNION ALL SELECT 'generated', lower(t.name), lower(c.name), ''
        FROM t JOIN pragma_table_xinfo(t.name) c WHERE c.hidden IN (2, 3)
    UNION ALL SELECT 'unique', lower(t.name), l.name, i.name FROM t JOIN pragma_index_list(t.name) l
        JOIN pragma_index_info(l.name) i WHERE l.\"unique\" AND i.name IS NOT NULL";

/// A time with milliseconds. Its text sorts by time, before `infinity` and after `-infinity`.
const INSTANT: &str = "'%Y-%m-%d %H:%M:%f'";

const TABLES: &str = include_str!("../migrations/sqlite.sql");
const MANAGEMENT: &str = include_str!("../migrations/management.sqlite.sql");
const CREATE_PROOFS: &str = include_str!("../migrations/proofs.sqlite.sql");
const CREATE_ROTATIONS: &str = include_str!("../migrations/rotations.sqlite.sql");

const COLUMNS: &str = "SELECT c.name, '\"' || replace(c.name, '\"', '\"\"') || '\"', CASE
        WHEN c.hidden IN (2, 3) THEN 'computed'
        WHEN c.dflt_value IS NOT NULL AND EXISTS (SELECT 1 FROM pragma_index_list(?1) l WHERE l.\"unique\"
            AND (SELECT group_concat(i.name, ',') FROM pragma_index_info(l.name) i) = c.name) THEN 'default' END
    FROM pragma_table_xinfo(?1) c WHERE c.hidden <> 1 ORDER BY c.cid";

/// The names of tables and columns in SQLite are case-insensitive.
const INDEX: &str = "SELECT 'found' FROM pragma_index_list(?1) l
    JOIN pragma_index_info(l.name) i WHERE i.seqno = 0 AND lower(i.name) = ?2 AND l.partial = 0
    -- The row number has no index of its own.
    UNION ALL SELECT 'found' FROM pragma_table_info(?1) WHERE lower(name) = ?2 AND pk = 1
    UNION ALL SELECT 'found' FROM sqlite_schema WHERE type = 'view' AND lower(name) = ?1";

impl Dialect for SqliteStatements {
    /// Names are case-insensitive.
    fn identifier(&self, name: &str, _: &str) -> String {
        name.to_owned()
    }

    fn as_text(&self, column: &str, _: &str) -> String {
        format!("CAST({column} AS TEXT)")
    }

    fn as_integer(&self, column: &str, _: &str) -> String {
        column.to_owned()
    }

    fn bytewise(&self, column: &str) -> String {
        format!("CAST({column} AS TEXT) COLLATE BINARY")
    }

    fn is_exactly(&self, column: &str, param: usize) -> String {
        format!("{} = ?{param}", self.bytewise(column))
    }

    fn is_one_of(&self, column: &str, _: &str, numbers: &[i64]) -> (String, String) {
        let condition = format!("{column} IN (SELECT value FROM json_each(?1))");
        (condition, serde_json::Value::from(numbers).to_string())
    }

    fn is_within(&self, column: &str, _: &str, window: Duration) -> String {
        format!("datetime({column}) > datetime('now', '-{} seconds')", window.as_secs())
    }

    fn is_true(&self, column: &str, _: &str) -> String {
        let text = format!("CAST({column} AS TEXT)");
        format!(
            "COALESCE(lower({text}) IN ('true', 't')
            OR ({text} GLOB '*[0-9]*' AND {text} NOT GLOB '*[^0-9.]*' AND CAST({text} AS REAL) = 1.0), 0)"
        )
    }

    fn has_entry(&self, column: &str, _: &str, param: usize) -> String {
        let text = format!("CAST({column} AS TEXT)");
        // A list with another entry cannot be read, by a check either.
        format!(
            "COALESCE((SELECT sum(e.value = ?{param}) > 0 AND min(e.type = 'text') FROM json_each(
                CASE WHEN json_valid({text}) THEN CASE WHEN json_type({text}) = 'array' THEN {text} END END) e), 0)"
        )
    }

    fn instant(&self, column: &str, _: &str) -> String {
        let text = format!("CAST({column} AS TEXT)");
        // SQLite reads offsets with a colon only, a number as a Julian day, and February 30 as March 2.
        format!(
            "CASE WHEN lower({text}) IN ('infinity', '-infinity') THEN lower({text})
            WHEN {text} GLOB '* BC' THEN '-infinity'
            WHEN {text} NOT GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]'
                AND {text} NOT GLOB '[0-9]*-*[ Tt][0-9][0-9]:[0-9][0-9]:[0-9][0-9]*' THEN NULL
            WHEN date(substr({text}, 1, 10)) IS NOT substr({text}, 1, 10) THEN NULL
            WHEN {text} GLOB '*:[0-9]*[+-][0-9][0-9]' THEN strftime({INSTANT}, {text} || ':00')
            WHEN {text} GLOB '*:[0-9]*[+-][0-9][0-9][0-9][0-9]'
                THEN strftime({INSTANT}, substr({text}, 1, length({text}) - 2) || ':' || substr({text}, -2))
            ELSE strftime({INSTANT}, {text}) END"
        )
    }

    fn instant_param(&self, number: usize) -> String {
        format!("strftime({INSTANT}, ?{number})")
    }

    fn instant_kind(&self) -> &'static str {
        "text"
    }

    /// A transaction that writes has the whole file.
    fn lock_rows(&self, _: &str) -> String {
        String::new()
    }

    fn param(&self, number: usize, _: &str) -> String {
        format!("?{number}")
    }

    fn timestamp(&self, written: String) -> String {
        written
    }

    fn has_narrow_integers(&self) -> bool {
        false
    }

    fn json_rows(&self, columns: &str) -> String {
        format!("json_group_array(json_array({columns}))")
    }
}

impl Statements for SqliteStatements {
    fn read_schema(&self) -> Statement {
        let fingerprint = change_log::FINGERPRINT;
        Statement::plain(format!("{SCHEMA} UNION ALL SELECT 'relation', '', {fingerprint}, ''"))
    }

    fn log_position(&self) -> &'static str {
        change_log::POSITION
    }

    fn replication_lag(&self) -> &'static str {
        "NULL"
    }

    fn read_log(
        &self,
        schema: &Schema,
        tables: &[WatchedTable],
        since: Option<&Since>,
        limit: usize,
    ) -> Statement {
        let next = since.map_or(1, |since| Snapshot::next(since.position.snapshot())).to_string();
        let anchor = since.and_then(|since| since.anchor.clone());
        let triggers = serde_json::to_string(&triggers::triggers(schema, tables));
        Statement::new(change_log::read(limit), [Some(next), anchor, triggers.ok()])
    }

    fn prune_log(&self, _: &Schema, age: Duration) -> [Statement; 2] {
        change_log::prune(age.as_secs()).map(Statement::plain)
    }

    fn entry_id(&self) -> &'static str {
        "CAST(id AS TEXT)"
    }

    fn usage_update(&self, last_used_at: &ColumnRef<'_>, total_requests: &ColumnRef<'_>) -> UsageUpdate {
        let (last, seconds) = ("json_extract(d.value, '$.last')", LAST_USED_INTERVAL.as_secs());
        UsageUpdate {
            batch: "json_each(?1) AS d",
            key: "json_extract(d.value, '$.id')",
            last_used_at: last.to_owned(),
            is_older: format!("datetime(k.{}) < datetime({last}, '-{seconds} seconds')", last_used_at.name),
            total_requests: format!("COALESCE(k.{}, 0) + json_extract(d.value, '$.n')", total_requests.name),
        }
    }

    fn transaction_status(&self, _: &str) -> Option<Statement> {
        None
    }

    fn store_proofs(&self, proofs: &str) -> [Statement; 2] {
        let values = |names: &[&str]| {
            let values = names.iter().map(|name| format!("json_extract(value, '$.{name}')"));
            values.collect::<Vec<_>>().join(", ")
        };
        [
            format!(
                "DELETE FROM {PROOFS} WHERE (key_id, tag) IN (SELECT {} FROM json_each(?1))",
                values(&PROOF_COLUMNS[..2])
            ),
            format!(
                "INSERT OR IGNORE INTO {PROOFS} ({}) SELECT {} FROM json_each(?1)",
                PROOF_COLUMNS.join(", "),
                values(&PROOF_COLUMNS)
            ),
        ]
        .map(|sql| Statement::new(sql, [Some(proofs.to_owned())]))
    }

    fn prune_proofs(&self, oldest: i64) -> Statement {
        let sql = format!("DELETE FROM {PROOFS} WHERE proven_at < CAST(?1 AS integer)");
        Statement::new(sql, [Some(oldest.to_string())])
    }

    fn create_tables(&self, tables: &[&str]) -> Vec<Statement> {
        sections(TABLES, tables)
    }

    fn create_proofs(&self) -> Vec<Statement> {
        vec![Statement::plain(CREATE_PROOFS)]
    }

    fn create_rotations(&self) -> Vec<Statement> {
        script(CREATE_ROTATIONS)
    }

    fn create_management(&self) -> Vec<Statement> {
        script(MANAGEMENT)
    }

    fn index_on(&self, _: &Schema, table: &str, column: &str) -> Statement {
        Statement::new(INDEX, [table, column].map(|name| Some(name.to_owned())))
    }

    fn access(&self, _: &Schema) -> Option<Statement> {
        None
    }

    fn may_update(&self, _: &Schema, _: &str, _: &str) -> Option<Statement> {
        None
    }

    fn columns(&self, _: &Schema, table: &str) -> Statement {
        Statement::new(COLUMNS, [Some(table.to_owned())])
    }

    fn copy_budget(&self, schema: &Schema, insert: Statement, first: i64) -> Vec<Statement> {
        let note = format!(
            "INSERT INTO {} (budget_id, first_id, key_id) SELECT {}, {first}, {} FROM {}
            WHERE rowid = last_insert_rowid() RETURNING CAST(budget_id AS TEXT)",
            schema.relation(ROTATED_BUDGETS),
            schema.name("budgets", "id"),
            schema.name("budgets", "api_key_id"),
            schema.relation("budgets"),
        );
        let insert = Statement::new(format!("{} RETURNING '1'", insert.sql), insert.params);
        vec![insert, Statement::plain(note)]
    }

    fn audit_state(&self, schema: &Schema) -> Statement {
        audit::state(schema)
    }

    fn audit_position(&self) -> &'static str {
        "(SELECT CAST(COALESCE(MAX(id), 0) AS TEXT) FROM keystile_audit)"
    }

    /// Only one transaction writes at a time, so entries are committed in the order of their ids.
    fn audit_since(&self, param: usize) -> String {
        format!("a.id > CAST(?{param} AS INTEGER)")
    }

    fn begin_change(&self, schema: &Schema, actor: &Actor, action: Action) -> Vec<Statement> {
        audit::begin(schema, &actor.to_json(action))
    }

    fn end_change(&self, schema: &Schema) -> Option<Statement> {
        audit::end(schema)
    }

    fn granted_relations(&self, _: &Schema) -> Option<Statement> {
        None
    }

    fn grants(&self, _: &Schema, _: &[UsedColumns], _: Rows, _: &str) -> String {
        String::new()
    }

    fn advance_key_ids(&self) -> Option<Statement> {
        None
    }
}
