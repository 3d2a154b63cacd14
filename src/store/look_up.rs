//! The look-up: one statement that selects the records of a prefix, their budgets and their stored proofs.

use std::{sync::Arc, time::Duration};

use super::{
    MAX_RECORDS, Row, SqlValue,
    decode::{self, budgets},
    schema::{PROOFS, ROTATED_BUDGETS, ROTATIONS, Schema},
    statements::Statements,
};
use crate::revocation::LogPosition;

/// Maximum number of stored proofs of one key that are read. Each is for a correct secret, so there are few, unless
/// another application writes them.
const PROOFS_PER_KEY: usize = 16;

/// Selects [`decode::COLUMNS`] of every row with one prefix, then the log position, the replication lag, and the
/// stored proofs of each key.
pub(super) fn records(schema: &Schema, statements: &dyn Statements) -> String {
    let columns = decode::COLUMNS.iter().map(|(table, column)| match (*table, *column) {
        decode::BUDGETS => budgets_of_key(schema, statements),
        decode::CHAIN => chain_of_key(schema, statements),
        decode::SHARED_USAGE => shared_usage_of_key(schema, statements),
        (table, column) => schema.column(table, column),
    });
    let position = if schema.has_log() { statements.log_position() } else { "NULL" };
    let lag = statements.replication_lag();
    let columns: Vec<_> =
        columns.chain([position.to_owned(), lag.to_owned(), proofs_of_key(schema, statements)]).collect();
    let prefix = format!("k.{}", schema.name("api_keys", "key_prefix"));
    format!(
        "SELECT {} FROM {} WHERE {prefix} = {} AND {} {} LIMIT {MAX_RECORDS}",
        columns.join(", "),
        schema.joined(),
        schema.param(1, "api_keys", "key_prefix"),
        statements.is_exactly(&prefix, 1),
        schema.newest_first(),
    )
}

/// Selects the costs of the hashes of active keys, one row for each cost.
pub(super) fn costs(schema: &Schema) -> String {
    let hash = match schema.kind("api_keys", "key_hash") {
        // Without a conversion, since the statement reads every row.
        Some(kind) if kind == "text" || kind.starts_with("character") => "k.key_hash".to_owned(),
        _ => schema.column("api_keys", "key_hash"),
    };
    let active = if schema.has("api_keys", "is_active") {
        format!(" AND lower({}) IN ('1', 't', 'true')", schema.column("api_keys", "is_active"))
    } else {
        String::new()
    };
    format!(
        "SELECT DISTINCT substr({hash}, 5, 2) FROM api_keys k WHERE {hash} LIKE '$2_$__$%'{active} LIMIT 1000"
    )
}

/// The log position that the rows of a look-up have.
pub(super) fn log_position(rows: &[Row], schema: &Schema) -> Option<Arc<LogPosition>> {
    let text = rows.first()?.get(decode::COLUMNS.len())?.as_deref()?;
    schema.log_position(text).map(Arc::new)
}

/// How far the database that returned these rows lags behind its primary.
pub(super) fn replication_lag(rows: &[Row]) -> Duration {
    let lag = rows.first().and_then(|row| row.get(decode::COLUMNS.len() + 1)?.as_deref()?.parse().ok());
    lag.map_or(Duration::ZERO, |lag: f64| {
        Duration::try_from_secs_f64(lag).unwrap_or(if lag < 0.0 { Duration::ZERO } else { Duration::MAX })
    })
}

/// The stored proofs of a row's key: a JSON array of arrays of tag, time and seal.
pub(super) fn stored_proofs(row: &Row) -> Option<&str> {
    row.last().and_then(SqlValue::as_deref)
}

/// An expression for the active budgets of the key `k` and of its user: a JSON array with an array of texts for each.
/// NULL where there is no such table.
fn budgets_of_key(schema: &Schema, statements: &dyn Statements) -> String {
    if !schema.has_budgets() {
        return "NULL".to_owned();
    }
    let rows = statements.json_rows(&schema.select("budgets", budgets::COLUMNS));
    // Expired budgets accumulate. A row with an unreadable flag is not excluded here: it denies the key.
    let active = schema.column("budgets", "is_active");
    let table = schema.relation("budgets");
    let name = |table, column| schema.name(table, column);
    let (key, user) = (name("budgets", "api_key_id"), name("budgets", "user_id"));
    let (id, owner) = (name("api_keys", "id"), name("api_keys", "user_id"));
    format!(
        "(SELECT {rows} FROM {table} b
        WHERE (b.{key} = k.{id} OR (b.{user} = k.{owner} AND b.{key} IS NULL))
        AND coalesce(lower({active}), '1') NOT IN ('0', 'f', 'false'))"
    )
}

/// An expression for the chain of the key `k`: a JSON array with an array of texts for each rotation, as
/// [`decode`] reads it. NULL where there is no such table, or the key was never rotated.
fn chain_of_key(schema: &Schema, statements: &dyn Statements) -> String {
    let Some(kind) = schema.kind("api_keys", "id").filter(|_| schema.has_rotations()) else {
        return "NULL".to_owned();
    };
    let (keys, id) = (schema.relation("api_keys"), schema.name("api_keys", "id"));
    let spent = |alias: &str| match schema.kind("api_keys", "total_cost") {
        Some(kind) => statements.as_text(&format!("{alias}.{}", schema.name("api_keys", "total_cost")), kind),
        None => "NULL".to_owned(),
    };
    let columns = [
        schema.select(ROTATIONS, ["predecessor_id", "successor_id", "limit_id", "created_at"]),
        spent("p"),
        spent("s"),
    ];
    format!(
        "(SELECT {rows} FROM {rotations} c
        LEFT JOIN {keys} p ON p.{id} = c.predecessor_id LEFT JOIN {keys} s ON s.{id} = c.successor_id
        WHERE c.limit_id = {first})",
        rows = statements.json_rows(&columns.join(", ")),
        rotations = schema.relation(ROTATIONS),
        first = schema.limit_id(&statements.as_integer(&format!("k.{id}"), kind)),
    )
}

/// An expression for what other keys of the chain have used of the budgets of the key `k`: a JSON array with an array of
/// texts for each row, as [`budgets`] reads it. NULL where there is no such table.
fn shared_usage_of_key(schema: &Schema, statements: &dyn Statements) -> String {
    let Some(kind) = schema.kind("api_keys", "id").filter(|_| schema.has_rotations() && schema.has_budgets())
    else {
        return "NULL".to_owned();
    };
    let mapping = schema.relation(ROTATED_BUDGETS);
    let own = statements.as_text("own.budget_id", "bigint");
    let rows = statements.json_rows(&format!("{own}, {}", schema.select("budgets", budgets::SHARED_COLUMNS)));
    let active = schema.column("budgets", "is_active");
    format!(
        "(SELECT {rows} FROM {mapping} own
        JOIN {mapping} other ON other.first_id = own.first_id AND other.budget_id <> own.budget_id
        JOIN {budgets} b ON b.{id} = other.budget_id
        WHERE own.key_id = {key} AND coalesce(lower({active}), '1') NOT IN ('0', 'f', 'false'))",
        budgets = schema.relation("budgets"),
        id = schema.name("budgets", "id"),
        key = statements.as_integer(&format!("k.{}", schema.name("api_keys", "id")), kind),
    )
}

/// An expression for the stored proofs of the key `k`. NULL where there is no such table, or it may not be read.
fn proofs_of_key(schema: &Schema, statements: &dyn Statements) -> String {
    let Some(kind) = schema.kind("api_keys", "id").filter(|_| schema.has_proofs()) else {
        return "NULL".to_owned();
    };
    let rows = statements.json_rows("tag, CAST(proven_at AS text), seal");
    let key = statements.as_integer("k.id", kind);
    format!(
        "(SELECT {rows} FROM (SELECT tag, proven_at, seal FROM {PROOFS} p WHERE p.key_id = {key}
        ORDER BY p.proven_at DESC LIMIT {PROOFS_PER_KEY}) p)"
    )
}
