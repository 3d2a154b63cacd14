//! The SQL of Postgres.

use std::time::Duration;

use super::{access, audit_check, change_log, expressions, grants};
use crate::{
    revocation::{Since, Snapshot},
    store::{
        actor::{Action, Actor},
        audited_tables::audited_tables,
        dialect::Dialect,
        schema::{PROOFS, ROTATED_BUDGETS, Schema},
        statement::{Rows, Statement},
        statements::{ColumnRef, LAST_USED_INTERVAL, Statements, UsageUpdate, UsedColumns, script, sections},
        watched_tables::WatchedTable,
    },
};

/// Postgres' statements and expressions.
pub(crate) struct PostgresStatements;

/// `to_regclass` follows the search path, as every other statement does. Columns that the database computes are listed
/// twice.
const SCHEMA: &str = "SELECT 'column', t.name, a.attname::text, format_type(b.oid, -1)
    FROM (VALUES ('api_keys'), ('users'), ('roles'), ('budgets'), ('keystile_changes'), ('keystile_proofs'),
        ('keystile_rotations'), ('keystile_rotated_budgets'), ('keystile_audit'),
        ('keystile_management_tokens')) AS t (name)
    JOIN pg_attribute a ON a.attrelid = to_regclass(t.name)
    CROSS JOIN LATERAL (
        WITH RECURSIVE domains AS (
            SELECT oid, typtype, typbasetype FROM pg_type WHERE oid = a.atttypid
            UNION ALL SELECT p.oid, p.typtype, p.typbasetype FROM domains d JOIN pg_type p ON p.oid = d.typbasetype
        ) SELECT oid FROM domains WHERE typtype <> 'd') AS b
    WHERE a.attnum > 0 AND NOT a.attisdropped
    -- Every look-up reads this table, so it counts as absent where this role may not read it.
    AND (t.name <> 'keystile_proofs' OR has_table_privilege(a.attrelid, 'SELECT'))
    UNION ALL SELECT 'generated', t.name, lower(a.attname::text), ''
    FROM (VALUES ('api_keys'), ('users')) AS t (name) JOIN pg_attribute a ON a.attrelid = to_regclass(t.name)
    WHERE a.attgenerated <> '' AND NOT a.attisdropped";

const TABLES: &str = include_str!("../migrations/postgres.sql");
const MANAGEMENT: &str = include_str!("../migrations/management.postgres.sql");
const CREATE_PROOFS: &str = include_str!("../migrations/proofs.postgres.sql");
const CREATE_ROTATIONS: &str = include_str!("../migrations/rotations.postgres.sql");

/// Serialises concurrent migrations. The number is arbitrary, and used by Keystile only.
pub(super) const MIGRATION_LOCK: &str = "SELECT CAST(pg_advisory_xact_lock(5353872341) AS text)";

/// Identity columns are left to the database, those of a view as well.
const COLUMNS: &str = "SELECT a.attname::text, quote_ident(a.attname), CASE
        WHEN a.attidentity <> '' OR a.attgenerated <> '' THEN 'computed'
        WHEN a.atthasdef AND EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisunique
            AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum) THEN 'default' END
    FROM pg_attribute a WHERE a.attrelid = to_regclass($1::text) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum";

const INDEX: &str = "SELECT 'found' FROM pg_index i
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = to_regclass($1::text) AND a.attname = $2::text AND i.indpred IS NULL AND i.indisvalid
    UNION ALL SELECT 'found' FROM pg_class WHERE oid = to_regclass($1::text) AND relkind IN ('v', 'f')";

/// A sequence must not return ids that were given explicitly. It moves past them, never back, even if the transaction
/// is rolled back.
const ADVANCE_KEY_IDS: &str =
    "SELECT CAST(setval(s, greatest(nextval(s), (SELECT max(id) FROM api_keys))) AS text)
    FROM (SELECT CAST(pg_get_serial_sequence('api_keys', 'id') AS regclass)) AS sequence (s)";

impl Dialect for PostgresStatements {
    /// `Name` and `"Name"` are two columns.
    fn identifier(&self, name: &str, spelling: &str) -> String {
        if spelling == name { name.to_owned() } else { format!("\"{}\"", spelling.replace('"', "\"\"")) }
    }

    fn as_text(&self, column: &str, kind: &str) -> String {
        match kind {
            // JSON as written: unwrapped, the string "[]" would pass for an empty list. The padding of `char(n)` is
            // omitted.
            "json" | "jsonb" | "text" | "character varying" | "bpchar" | "character" | "citext" => {
                format!("CAST({column} AS text)")
            }
            "timestamp with time zone" => format!("to_jsonb(timezone('UTC', {column})) #>> '{{}}'"),
            // Without the conversion to numeric they have 15 digits. Numeric has no infinity before Postgres 14.
            "real" | "double precision" => format!(
                "CASE WHEN {column} IN ('NaN', 'Infinity', '-Infinity') THEN 'NaN'
                ELSE CAST(CAST(CAST({column} AS double precision) AS numeric) AS text) END"
            ),
            "bytea" => format!("encode({column}, 'escape')"),
            "bpchar[]" | "character[]" => format!("to_jsonb(CAST({column} AS text[])) #>> '{{}}'"),
            // One form for every other type, independent of DateStyle and the like.
            _ => format!("to_jsonb({column}) #>> '{{}}'"),
        }
    }

    fn as_integer(&self, column: &str, kind: &str) -> String {
        if matches!(kind, "smallint" | "integer" | "bigint") {
            return column.to_owned();
        }
        let text = self.as_text(column, kind);
        format!("CASE WHEN {text} ~ '^-?[0-9]{{1,18}}$' THEN CAST({text} AS bigint) END")
    }

    fn bytewise(&self, column: &str) -> String {
        format!("CAST({column} AS text) COLLATE \"C\"")
    }

    fn is_exactly(&self, column: &str, param: usize) -> String {
        format!("{} = ${param}::text", self.bytewise(column))
    }

    fn is_one_of(&self, column: &str, kind: &str, numbers: &[i64]) -> (String, String) {
        // An index on the column serves every integer type.
        let kind = if matches!(kind, "smallint" | "integer") { "bigint" } else { kind };
        let numbers = numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        (format!("{column} = ANY (CAST($1::text AS {kind}[]))"), format!("{{{numbers}}}"))
    }

    fn is_within(&self, column: &str, kind: &str, window: Duration) -> String {
        let start = format!("now() - CAST('{} s' AS interval)", window.as_secs());
        if kind.ends_with("with time zone") {
            format!("{column} > {start}")
        } else {
            format!("{column} > ({start}) AT TIME ZONE 'UTC'")
        }
    }

    fn is_true(&self, column: &str, kind: &str) -> String {
        if kind == "boolean" {
            return format!("COALESCE({column}, false)");
        }
        let text = self.as_text(column, kind);
        format!("COALESCE(lower({text}) IN ('true', 't') OR {text} ~ '^[+]?0*1([.]0+)?$', false)")
    }

    fn has_entry(&self, column: &str, kind: &str, param: usize) -> String {
        expressions::has_entry(&self.as_text(column, kind), param)
    }

    fn instant(&self, column: &str, kind: &str) -> String {
        expressions::instant(column, kind)
    }

    fn instant_param(&self, number: usize) -> String {
        self.param(number, self.instant_kind())
    }

    fn instant_kind(&self) -> &'static str {
        "timestamp without time zone"
    }

    fn lock_rows(&self, alias: &str) -> String {
        format!(" FOR UPDATE OF {alias}")
    }

    fn param(&self, number: usize, kind: &str) -> String {
        match kind.strip_suffix("[]") {
            Some(entry) => expressions::array(&format!("${number}::text"), entry),
            None => format!("CAST(${number}::text AS {kind})"),
        }
    }

    /// A column without a time zone ignores the offset. A column with one needs it.
    fn timestamp(&self, mut written: String) -> String {
        if written.starts_with(|first: char| first.is_ascii_digit()) {
            written.push_str("+00");
        }
        written
    }

    fn has_narrow_integers(&self) -> bool {
        true
    }

    fn json_rows(&self, columns: &str) -> String {
        format!("CAST(json_agg(json_build_array({columns})) AS text)")
    }
}

impl Statements for PostgresStatements {
    fn read_schema(&self) -> Statement {
        Statement::plain(change_log::tables(SCHEMA))
    }

    fn log_position(&self) -> &'static str {
        change_log::POSITION
    }

    fn replication_lag(&self) -> &'static str {
        change_log::LAG
    }

    fn read_log(
        &self,
        schema: &Schema,
        tables: &[WatchedTable],
        since: Option<&Since>,
        limit: usize,
    ) -> Statement {
        // The first transaction number that the system itself does not use.
        let snapshot =
            since.map_or_else(|| "3:3:".to_owned(), |since| Snapshot::to_string(since.position.snapshot()));
        let anchor = since.and_then(|since| since.anchor.clone());
        Statement::new(change_log::read(schema, tables, limit), [Some(snapshot), anchor])
    }

    fn prune_log(&self, schema: &Schema, age: Duration) -> [Statement; 2] {
        change_log::prune(schema, age.as_secs()).map(Statement::plain)
    }

    fn entry_id(&self) -> &'static str {
        "CAST(xid AS text)"
    }

    fn usage_update(&self, last_used_at: &ColumnRef<'_>, total_requests: &ColumnRef<'_>) -> UsageUpdate {
        let seconds = LAST_USED_INTERVAL.as_secs();
        let last = format!("CAST(d.last AS {})", last_used_at.kind);
        let total = format!("COALESCE(k.{}, 0) + d.n", total_requests.name);
        UsageUpdate {
            batch: "jsonb_to_recordset(CAST($1::text AS jsonb)) AS d (id bigint, n bigint, last text)",
            key: "d.id",
            is_older: format!("k.{} < {last} - CAST('{seconds} s' AS interval)", last_used_at.name),
            last_used_at: last,
            // A counter of this type ends here. The batch must not fail for it.
            total_requests: if total_requests.kind == "integer" {
                format!("LEAST({total}, 2147483647)")
            } else {
                total
            },
        }
    }

    fn transaction_status(&self, transaction: &str) -> Option<Statement> {
        let sql = "SELECT COALESCE(pg_xact_status(CAST($1::text AS xid8)), 'committed')";
        Some(Statement::new(sql, [Some(transaction.to_owned())]))
    }

    /// Without UPDATE, so that a role needs only the rights to insert and to delete.
    fn store_proofs(&self, proofs: &str) -> [Statement; 2] {
        let rows = "jsonb_to_recordset(CAST($1::text AS jsonb))
            AS d (key_id bigint, tag text, proven_at bigint, seal text)";
        [
            format!("DELETE FROM {PROOFS} p USING {rows} WHERE p.key_id = d.key_id AND p.tag = d.tag"),
            format!(
                "INSERT INTO {PROOFS} (key_id, tag, proven_at, seal)
                SELECT d.key_id, d.tag, d.proven_at, d.seal FROM {rows} ON CONFLICT DO NOTHING"
            ),
        ]
        .map(|sql| Statement::new(sql, [Some(proofs.to_owned())]))
    }

    fn prune_proofs(&self, oldest: i64) -> Statement {
        let sql = format!("DELETE FROM {PROOFS} WHERE proven_at < CAST($1::text AS bigint)");
        Statement::new(sql, [Some(oldest.to_string())])
    }

    fn create_tables(&self, tables: &[&str]) -> Vec<Statement> {
        [Statement::plain(MIGRATION_LOCK)].into_iter().chain(sections(TABLES, tables)).collect()
    }

    fn create_proofs(&self) -> Vec<Statement> {
        [MIGRATION_LOCK, CREATE_PROOFS].map(Statement::plain).to_vec()
    }

    fn create_rotations(&self) -> Vec<Statement> {
        [Statement::plain(MIGRATION_LOCK)].into_iter().chain(script(CREATE_ROTATIONS)).collect()
    }

    fn create_management(&self) -> Vec<Statement> {
        [Statement::plain(MIGRATION_LOCK)].into_iter().chain(script(MANAGEMENT)).collect()
    }

    fn index_on(&self, schema: &Schema, table: &str, column: &str) -> Statement {
        let relation = schema.relation(table).to_owned();
        let column = schema.spelling(table, column).unwrap_or(column).to_owned();
        Statement::new(INDEX, [Some(relation), Some(column)])
    }

    fn access(&self, schema: &Schema) -> Option<Statement> {
        Some(Statement::plain(access::access(schema)))
    }

    fn columns(&self, schema: &Schema, table: &str) -> Statement {
        Statement::new(COLUMNS, [Some(schema.relation(table).to_owned())])
    }

    fn copy_budget(&self, schema: &Schema, insert: Statement, first: i64) -> Vec<Statement> {
        let (id, key) = (schema.name("budgets", "id"), schema.name("budgets", "api_key_id"));
        let sql = format!(
            "WITH copied (id, key_id) AS ({} RETURNING {id}, {key})
            INSERT INTO {} (budget_id, first_id, key_id) SELECT id, {first}, key_id FROM copied
            RETURNING CAST(budget_id AS text)",
            insert.sql,
            schema.relation(ROTATED_BUDGETS),
        );
        vec![Statement::new(sql, insert.params)]
    }

    fn audit_state(&self, schema: &Schema) -> Statement {
        Statement::plain(audit_check::state(&audited_tables(schema)))
    }

    fn audit_position(&self) -> &'static str {
        "CAST(pg_current_snapshot() AS text)"
    }

    /// An entry whose number no transaction of this cluster had yet is from a dump of another cluster.
    fn audit_since(&self, param: usize) -> String {
        format!(
            "a.xid >= pg_snapshot_xmin(CAST(${param}::text AS pg_snapshot))
            AND NOT pg_visible_in_snapshot(a.xid, CAST(${param}::text AS pg_snapshot))
            AND a.xid < pg_snapshot_xmax(pg_current_snapshot())"
        )
    }

    /// The setting ends with the transaction.
    fn begin_change(&self, schema: &Schema, actor: &Actor, action: Action) -> Vec<Statement> {
        let begin = audit_check::begin(&audited_tables(schema));
        vec![Statement::new(begin, [Some(actor.to_json(action))]).required()]
    }

    fn may_update(&self, schema: &Schema, table: &str, column: &str) -> Option<Statement> {
        const SQL: &str =
            "SELECT 'yes' WHERE has_column_privilege(CAST(to_regclass($1::text) AS oid), $2::text, 'UPDATE')";
        let column = schema.spelling(table, column).unwrap_or(column).to_owned();
        Some(Statement::new(SQL, [Some(schema.relation(table).to_owned()), Some(column)]))
    }

    fn end_change(&self, _: &Schema) -> Option<Statement> {
        None
    }

    fn granted_relations(&self, schema: &Schema) -> Option<Statement> {
        Some(Statement::plain(grants::relations(schema)))
    }

    fn grants(&self, schema: &Schema, used: &[UsedColumns], relations: Rows, role: &str) -> String {
        grants::script(schema, used, relations, role)
    }

    fn advance_key_ids(&self) -> Option<Statement> {
        Some(Statement::plain(ADVANCE_KEY_IDS))
    }
}
