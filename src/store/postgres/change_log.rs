//! The statements with which Postgres reads its log of changes, and the evidence that the log is complete.

use super::triggers::{TRIGGERS, TriggerDefinition, literal};
use crate::store::{schema::Schema, watched_tables::WatchedTable};

/// The tables by name, their partitions and the tables that inherit from them, and the log.
const TABLES: &str = "roots AS (
        SELECT n.name, CAST(to_regclass(n.name) AS oid) AS oid
        FROM (VALUES ('api_keys'), ('users'), ('roles'), ('budgets'), ('keystile_rotations'),
            ('keystile_rotated_budgets')) AS n (name)
        WHERE to_regclass(n.name) IS NOT NULL
    ), members AS (
        SELECT name, oid FROM roots
        UNION SELECT m.name, i.inhrelid FROM members m JOIN pg_inherits i ON i.inhparent = m.oid
    ), log AS (
        SELECT c.*, n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = to_regclass('keystile_changes')
    )";

/// A fingerprint of tables, columns and triggers. The transaction that last touched each of them is part of it: a
/// trigger that was disabled and enabled again within one transaction leaves no other trace.
const FINGERPRINT: &str = "(SELECT encode(sha256(convert_to(string_agg(f.part, ',' ORDER BY f.part COLLATE \"C\"),
            'UTF8')), 'hex') FROM (
        SELECT format('c%s:%s', c.oid, c.xmin) FROM pg_class c
            WHERE c.oid IN (SELECT oid FROM members UNION ALL SELECT oid FROM log)
        UNION ALL SELECT format('a%s:%s:%s', a.attrelid, a.attnum, a.xmin) FROM pg_attribute a
            WHERE a.attnum > 0 AND a.attrelid IN (SELECT oid FROM roots UNION ALL SELECT oid FROM log)
        UNION ALL SELECT format('t%s:%s:%s', t.oid, t.xmin, p.xmin)
            FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
            WHERE t.tgname LIKE 'keystile%' AND t.tgrelid IN (SELECT oid FROM members UNION ALL SELECT oid FROM log)
    ) f (part))";

/// Adds to `columns` the fingerprint, and the name of each table in SQL: a statement with that name reads the same
/// table in each session, independent of its search path.
pub(super) fn tables(columns: &str) -> String {
    format!(
        "WITH RECURSIVE {TABLES}
        {columns}
        UNION ALL SELECT 'relation', '', {FINGERPRINT}, ''
        UNION ALL SELECT 'relation', r.name, quote_ident(n.nspname) || '.' || quote_ident(c.relname), ''
            FROM (SELECT name, oid FROM roots UNION ALL SELECT 'keystile_changes', oid FROM log
                UNION ALL SELECT 'keystile_audit', CAST(to_regclass('keystile_audit') AS oid)) r
            JOIN pg_class c ON c.oid = r.oid JOIN pg_namespace n ON n.oid = c.relnamespace"
    )
}

/// Selects the relations that need their own triggers: table, name in SQL, kind, and whether it is a partition, which has
/// the row triggers of its parent.
pub(super) fn members() -> String {
    format!(
        "WITH RECURSIVE {TABLES}
        SELECT m.name, quote_ident(n.nspname) || '.' || quote_ident(c.relname), CAST(c.relkind AS text),
            CAST(c.relispartition AS text)
        FROM members m JOIN pg_class c ON c.oid = m.oid JOIN pg_namespace n ON n.oid = c.relnamespace
        ORDER BY m.name, c.relispartition, c.oid"
    )
}

/// An expression for the server that a statement ran on, and the changes that it saw. NULL on a standby, whose
/// snapshots do not list the transactions in progress.
pub(super) const POSITION: &str = "CASE WHEN NOT pg_is_in_recovery() THEN
    CAST(CAST(extract(epoch FROM pg_postmaster_start_time()) * 1000000 AS bigint) AS text)
    || '/' || CAST(pg_current_snapshot() AS text) END";

/// An expression for how far the server's data lags behind its primary, in seconds; NULL on a primary. A standby that
/// is connected and has replayed all that it received lags by nothing.
pub(super) const LAG: &str = "CASE WHEN pg_is_in_recovery() THEN
    CAST(CASE WHEN (SELECT pid FROM pg_stat_get_wal_receiver()) IS NOT NULL
            AND pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
        ELSE COALESCE(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()), 1000000000) END
    AS text) END";

/// The triggers that are enabled, and whose functions have the text and the rights with which they were made.
pub(super) const INSTALLED: &str = "installed AS (
            SELECT t.tgrelid, t.tgname, t.tgtype,
                string_to_array(encode(t.tgargs, 'escape'), E'\\\\000') AS arguments
            FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid CROSS JOIN log l
            WHERE t.tgrelid IN (SELECT oid FROM members) AND t.tgenabled = 'A' AND t.tgqual IS NULL
            AND p.prosecdef AND p.proowner = l.relowner
            AND (string_to_array(encode(t.tgargs, 'escape'), E'\\\\000'))[1:2] = ARRAY[
                encode(sha256(convert_to(p.prosrc, 'UTF8')), 'hex'),
                encode(convert_to(CAST(l.nspname AS text), getdatabaseencoding()), 'escape')]
        )";

/// Selects the evidence, as JSON, and the entries since a snapshot (`$1`); `$2` is the newest entry of the previous read.
///
/// An entry whose number no transaction of this cluster had yet is from a dump of another cluster, and no change here.
pub(super) fn read(schema: &Schema, watched: &[WatchedTable], limit: usize) -> String {
    let log = schema.relation("keystile_changes");
    let needed = watched
        .iter()
        .map(|table| needed(table.name, table.columns.iter().map(|column| column.spelling.as_str())));
    let needed = needed.collect::<Vec<_>>().join(", ");
    let triggers = trigger_values(&TRIGGERS);
    let newest = newest(log);
    let [update, ..] = &TRIGGERS;
    let update = update.name;
    format!(
        "WITH RECURSIVE {TABLES}, needed (name, columns) AS (VALUES {needed}), {INSTALLED}, untriggered (problem) AS (
            SELECT format('%s on %s', g.name, CAST(m.oid AS regclass))
            FROM members m JOIN needed USING (name) JOIN pg_class c ON c.oid = m.oid
            CROSS JOIN (VALUES {triggers}) AS g (name, kind)
            WHERE c.relkind NOT IN ('r', 'p') OR NOT EXISTS (
                SELECT 1 FROM installed i WHERE i.tgrelid = m.oid AND i.tgname = g.name AND i.tgtype = g.kind)
            UNION ALL SELECT format('rule or trigger %s on keystile_changes', COALESCE(t.tgname, ''))
            FROM log l LEFT JOIN pg_trigger t ON t.tgrelid = l.oid AND NOT t.tgisinternal AND t.tgname <> 'keystile_notify'
            WHERE l.relhasrules OR t.oid IS NOT NULL OR l.relkind <> 'r'
            -- Without it, a change that could not be logged leaves no trace.
            UNION ALL SELECT 'sequence keystile_changes_lost' FROM log l
            WHERE to_regclass(format('%I.%I', l.nspname, 'keystile_changes_lost')) IS NULL
        ), unwatched (problem) AS (
            SELECT DISTINCT format('%s.%s', n.name, w.name)
            FROM needed n CROSS JOIN LATERAL unnest(n.columns) AS w (name) JOIN members m ON m.name = n.name
            JOIN installed i ON i.tgrelid = m.oid AND i.tgname = '{update}'
            JOIN pg_attribute a ON a.attrelid = m.oid AND a.attname = w.name
            -- A trigger does not see the value of a virtual column.
            WHERE NOT w.name = ANY (i.arguments[3:]) OR a.attgenerated = 'v'
        )
        SELECT 'evidence', CAST(json_build_object(
            'is_replica', pg_is_in_recovery(),
            'identity', concat_ws('/', (SELECT system_identifier FROM pg_control_system()),
                CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END,
                extract(epoch FROM pg_postmaster_start_time()), current_database(), (SELECT oid FROM log)),
            'next', CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint),
            'tables', {FINGERPRINT},
            'anchor', (SELECT format('%s:%s', c.xid, COALESCE(c.nonce, 0)) FROM {log} c
                WHERE c.xid = {newest} ORDER BY c.nonce DESC LIMIT 1),
            'anchor_is_there', EXISTS (SELECT 1 FROM {log} c
                WHERE c.xid = CAST(split_part($2::text, ':', 1) AS xid8)
                AND COALESCE(c.nonce, 0) = CAST(split_part($2::text, ':', 2) AS bigint)),
            'untriggered', (SELECT COALESCE(json_agg(problem ORDER BY problem), '[]') FROM untriggered),
            'unwatched', (SELECT COALESCE(json_agg(problem ORDER BY problem), '[]') FROM unwatched),
            'hides_rows', (SELECT row_security_active(oid) OR (relrowsecurity AND relforcerowsecurity
                AND NOT (SELECT rolsuper OR rolbypassrls FROM pg_roles r WHERE r.oid = log.relowner))
                -- Newer servers answer NULL for its value without this right, as they do for no lost change.
                OR NOT COALESCE(has_sequence_privilege(to_regclass(format('%I.%I', nspname,
                    'keystile_changes_lost')), 'SELECT'), true) FROM log),
            'lost_writes', COALESCE((SELECT pg_sequence_last_value(to_regclass(format('%I.%I', nspname,
                'keystile_changes_lost'))) FROM log), 0) > 0,
            'compares_dropped', EXISTS (SELECT 1 FROM installed i CROSS JOIN LATERAL unnest(i.arguments[3:]) AS w (name)
                WHERE w.name <> '' AND NOT EXISTS (SELECT 1 FROM pg_attribute a
                    WHERE a.attrelid = i.tgrelid AND a.attname = w.name AND NOT a.attisdropped)),
            'notifies', EXISTS (SELECT 1 FROM pg_trigger t JOIN log ON t.tgrelid = log.oid
                WHERE t.tgname = 'keystile_notify' AND t.tgenabled = 'A')
        ) AS text), {POSITION}, CAST((SELECT oid FROM log) AS text), NULL, NULL, NULL
        UNION ALL (SELECT 'entry', c.prefix, CAST(c.user_id AS text), CAST(c.key_id AS text), CAST(c.xid AS text),
                CAST(extract(epoch FROM clock_timestamp() - c.changed_at) AS text), c.source
            FROM (SELECT CAST($1::text AS pg_snapshot) AS since) s JOIN {log} c
            ON c.xid >= pg_snapshot_xmin(s.since) AND NOT pg_visible_in_snapshot(c.xid, s.since)
            AND c.xid < pg_snapshot_xmax(pg_current_snapshot())
            LIMIT {limit})"
    )
}

/// A table and its columns that must be watched, as values in SQL.
pub(super) fn needed<'a>(table: &str, columns: impl Iterator<Item = &'a str>) -> String {
    let columns = columns.map(literal).collect::<Vec<_>>().join(", ");
    format!("('{table}', CAST(ARRAY[{columns}] AS text[]))")
}

/// The triggers that there must be, as values in SQL.
pub(super) fn trigger_values(triggers: &[TriggerDefinition]) -> String {
    let triggers = triggers.iter().map(|trigger| format!("('{}', {})", trigger.name, trigger.kind));
    triggers.collect::<Vec<_>>().join(", ")
}

/// The number of the newest entry of this cluster, or of another cluster's where there is none.
fn newest(log: &str) -> String {
    format!(
        "COALESCE((SELECT c.xid FROM {log} c WHERE c.xid < pg_snapshot_xmax(pg_current_snapshot())
            ORDER BY c.xid DESC LIMIT 1), (SELECT c.xid FROM {log} c ORDER BY c.xid DESC LIMIT 1))"
    )
}

/// Deletes entries that every reader has seen, and marks new ones as seen. The newest entry stays: readers recognise the
/// log by it.
pub(super) fn prune(schema: &Schema, seconds: u64) -> [String; 2] {
    let log = schema.relation("keystile_changes");
    [
        format!(
            "DELETE FROM {log} WHERE seen_at < clock_timestamp() - CAST('{seconds} s' AS interval)
            AND xid IS DISTINCT FROM {}",
            newest(log)
        ),
        format!("UPDATE {log} SET seen_at = clock_timestamp() WHERE seen_at IS NULL"),
    ]
}
