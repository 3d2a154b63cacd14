//! The statement that selects what is unusual about the rights of Keystile's role.

use crate::store::{
    schema::{CHANGES, PROOF_COLUMNS, PROOFS, Schema},
    watched_tables::read_columns,
};

/// Columns that instances write, as far as the table has them.
pub(super) const WRITTEN: [&str; 2] = ["total_requests", "last_used_at"];

/// Selects, as rows of kind, table, right and columns:
/// - `right`: a right that the role of an instance needs, and this role lacks;
/// - `rows`: row-level security may hide rows of a table from this role;
/// - `role`: this role has every right, since it is a superuser or the owner of the keys.
pub(super) fn access(schema: &Schema) -> String {
    let read = read_columns(schema);
    let mut needed: Vec<_> =
        read.iter().map(|(table, columns)| (*table, "SELECT", columns.clone())).collect();
    let written = WRITTEN.into_iter().filter(|column| schema.has("api_keys", column));
    let written: Vec<_> = written.collect();
    if !written.is_empty() {
        needed.push(("api_keys", "UPDATE", written));
    }
    if schema.has_log() {
        needed.extend(["UPDATE", "DELETE"].map(|right| (CHANGES, right, vec![])));
    }
    // The table counts as absent where this role may not read it, which is a finding of its own.
    if schema.has_table(PROOFS) {
        needed.push((PROOFS, "INSERT", PROOF_COLUMNS.to_vec()));
        needed.push((PROOFS, "DELETE", vec![]));
    }
    let needed: Vec<_> = needed.iter().flat_map(|right| values(schema, right)).collect();
    let tables: Vec<_> = read.iter().map(|(table, _)| value(schema, table)).collect();
    format!(
        "WITH needed (name, oid, privilege, at, col) AS (VALUES {needed}),
        tables (name, oid) AS (VALUES {tables}), {POLICY}
        SELECT 'right', name, privilege, COALESCE(string_agg(col, ', ' ORDER BY at), '') FROM needed
        WHERE NOT CASE WHEN col IS NULL THEN has_table_privilege(oid, privilege)
            ELSE has_column_privilege(oid, col, privilege) END
        GROUP BY name, privilege
        UNION ALL SELECT 'right', '{PROOFS}', 'SELECT', '' WHERE to_regclass('{PROOFS}') IS NOT NULL
            AND NOT has_table_privilege(to_regclass('{PROOFS}'), 'SELECT')
        UNION ALL SELECT 'rows', name, '', '' FROM tables WHERE row_security_active(oid) AND NOT (
            EXISTS (SELECT 1 FROM policy p WHERE p.polrelid = oid AND p.polpermissive AND p.condition = 'true')
            AND NOT EXISTS (SELECT 1 FROM policy p WHERE p.polrelid = oid AND NOT p.polpermissive
                AND p.condition <> 'true'))
        UNION ALL SELECT 'role', '', '', '' WHERE (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
            OR (SELECT pg_has_role(c.relowner, 'USAGE') FROM pg_class c JOIN tables t ON c.oid = t.oid
                WHERE t.name = 'api_keys')",
        needed = needed.join(", "),
        tables = tables.join(", "),
    )
}

/// The policies for reading that apply to this role.
const POLICY: &str = "policy AS (
        SELECT polrelid, polpermissive, pg_get_expr(polqual, polrelid) AS condition FROM pg_policy
        WHERE polcmd IN ('r', '*') AND EXISTS (SELECT 1 FROM unnest(polroles) AS role
            WHERE role = 0 OR pg_has_role(role, 'USAGE')))";

/// A needed right as values in SQL, one for each column, or one for the table where it is about no column.
fn values(schema: &Schema, (table, privilege, columns): &(&str, &str, Vec<&str>)) -> Vec<String> {
    let relation = literal(schema.relation(table));
    let value = |at: usize, column: &str| {
        format!("({}, CAST(to_regclass({relation}) AS oid), '{privilege}', {at}, {column})", literal(table))
    };
    if columns.is_empty() {
        return vec![value(0, "CAST(NULL AS text)")];
    }
    let spelled = columns.iter().map(|column| literal(schema.spelling(table, column).unwrap_or(column)));
    spelled.enumerate().map(|(at, column)| value(at, &column)).collect()
}

fn value(schema: &Schema, table: &str) -> String {
    format!("({}, CAST(to_regclass({}) AS oid))", literal(table), literal(schema.relation(table)))
}

pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
