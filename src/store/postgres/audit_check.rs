//! The statements that check whether the audit log of Postgres records every change.

use super::{
    audit::AUDIT_TRIGGERS,
    change_log::{INSTALLED, needed, trigger_values},
};
use crate::store::audited_tables::AuditedTable;

/// The tables by name, their partitions and the tables that inherit from them.
fn members_of(names: &str) -> String {
    format!(
        "members AS (
            SELECT name, CAST(to_regclass(name) AS oid) AS oid FROM {names} WHERE to_regclass(name) IS NOT NULL
            UNION SELECT m.name, i.inhrelid FROM members m JOIN pg_inherits i ON i.inhparent = m.oid
        )"
    )
}

/// Selects the relations that need their own triggers: table, name in SQL, kind, and whether it is a partition, which has
/// the row triggers of its parent.
pub(super) fn members(tables: &[AuditedTable]) -> String {
    let names = tables.iter().map(|table| format!("('{}')", table.name)).collect::<Vec<_>>().join(", ");
    format!(
        "WITH RECURSIVE {} SELECT m.name, quote_ident(n.nspname) || '.' || quote_ident(c.relname), CAST(c.relkind AS text),
            CAST(c.relispartition AS text)
        FROM members m JOIN pg_class c ON c.oid = m.oid JOIN pg_namespace n ON n.oid = c.relnamespace
        ORDER BY m.name, c.relispartition, c.oid",
        members_of(&format!("(VALUES {names}) AS n (name)"))
    )
}

/// What keeps the audit log from recording a change, and the columns that it no longer finds. Nothing where there is no
/// audit log.
fn checks(tables: &[AuditedTable]) -> String {
    let columns = tables.iter().map(|table| needed(table.name, table.spellings()));
    let columns = columns.collect::<Vec<_>>().join(", ");
    let triggers = trigger_values(&AUDIT_TRIGGERS);
    let [update, ..] = &AUDIT_TRIGGERS;
    let (update, members) = (update.name, members_of("needed"));
    format!(
        "WITH RECURSIVE needed (name, columns) AS (VALUES {columns}), {members}, log AS (
            SELECT c.*, n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.oid = to_regclass('keystile_audit')
        ), {INSTALLED}, problems (problem) AS (
            SELECT format('no trigger %s of this version is enabled on %s', g.name, CAST(m.oid AS regclass))
            FROM log CROSS JOIN members m CROSS JOIN (VALUES {triggers}) AS g (name, kind)
            WHERE NOT EXISTS (SELECT 1 FROM installed i
                WHERE i.tgrelid = m.oid AND i.tgname = g.name AND i.tgtype = g.kind)
            UNION ALL SELECT DISTINCT format('its triggers do not watch %s.%s', n.name, w.name)
            FROM needed n CROSS JOIN LATERAL unnest(n.columns) AS w (name) JOIN members m ON m.name = n.name
            JOIN installed i ON i.tgrelid = m.oid AND i.tgname = '{update}'
            JOIN pg_attribute a ON a.attrelid = m.oid AND a.attname = w.name AND a.attgenerated <> 'v'
            WHERE NOT w.name = ANY (i.arguments[3:])
            UNION ALL SELECT format('it has a rule or a trigger %s', COALESCE(t.tgname, ''))
            FROM log l LEFT JOIN pg_trigger t ON t.tgrelid = l.oid AND NOT t.tgisinternal
            WHERE l.relhasrules OR t.oid IS NOT NULL OR l.relkind <> 'r'
            UNION ALL SELECT 'its sequence keystile_audit_lost is missing' FROM log l
            WHERE to_regclass(format('%I.%I', l.nspname, 'keystile_audit_lost')) IS NULL
            UNION ALL SELECT 'its owner is subject to row-level security' FROM log l
            WHERE relrowsecurity AND relforcerowsecurity
                AND NOT (SELECT rolsuper OR rolbypassrls FROM pg_roles r WHERE r.oid = l.relowner)
        ), stale (problem) AS (
            SELECT DISTINCT format('its triggers watch the column %s, which is gone', w.name)
            FROM installed i CROSS JOIN LATERAL unnest(i.arguments[3:]) AS w (name)
            WHERE i.tgname IN (SELECT g.name FROM (VALUES {triggers}) AS g (name, kind)) AND w.name <> ''
            AND NOT EXISTS (SELECT 1 FROM pg_attribute a
                WHERE a.attrelid = i.tgrelid AND a.attname = w.name AND NOT a.attisdropped)
        )"
    )
}

/// Selects what is wrong, as rows of a kind and a text.
pub(super) fn state(tables: &[AuditedTable]) -> String {
    format!(
        "{} SELECT 'problem', problem FROM problems UNION ALL SELECT 'stale', problem FROM stale
        UNION ALL SELECT 'lost', CAST(pg_sequence_last_value(to_regclass(format('%I.%I', nspname,
            'keystile_audit_lost'))) AS text) FROM log
        WHERE pg_sequence_last_value(to_regclass(format('%I.%I', nspname, 'keystile_audit_lost'))) IS NOT NULL",
        checks(tables)
    )
}

/// Makes the actor (`$1`) known until the end of the transaction. Returns no row where the audit log would not record a
/// change.
pub(super) fn begin(tables: &[AuditedTable]) -> String {
    format!(
        "{} SELECT set_config('keystile.actor', $1::text, true) WHERE NOT EXISTS (SELECT 1 FROM problems)",
        checks(tables)
    )
}
