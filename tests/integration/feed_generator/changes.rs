//! Ordinary changes by other applications, in the ways in which they make them.

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};

use super::{
    model::Facts,
    schema::{Schema, chance},
};

/// Scripts that each deny the key with this hash, as far as the tables have what they need.
pub fn denials(schema: &Schema, facts: &Facts, hash: &str) -> Vec<String> {
    let key = format!("key_hash = '{hash}'");
    let user = format!("id = (SELECT user_id FROM {{api_keys}} WHERE {key})");
    let set = |column: String| format!("UPDATE {{api_keys}} SET {column} WHERE {key}");
    let mut denials = vec![
        set(schema.set_active(false)),
        set(schema.set_active(false)),
        set("key_hash = 'replaced'".into()),
        set("key_prefix = 'ks_other'".into()),
        // A user who is not active.
        set("user_id = 0".into()),
        format!("DELETE FROM {{api_keys}} WHERE {key}"),
        format!("UPDATE {{users}} SET is_active = '0' WHERE {user}"),
        format!("UPDATE {{users}} SET is_active = '0' WHERE {user}"),
    ];
    if !schema.has_foreign_key {
        denials.push(format!("DELETE FROM {{users}} WHERE {user}"));
        denials.push(format!("UPDATE {{users}} SET id = id + 1000 WHERE {user}"));
    }
    if !schema.is_postgres {
        denials.extend(replacements(&key, &user));
    } else if !schema.is_view {
        denials.extend(merges(schema, &key));
    }
    let optional = [
        ("api_keys", "deleted_at", set("deleted_at = '2026-01-01 00:00:00'".into())),
        ("api_keys", "expires_at", set("expires_at = '2020-01-01 00:00:00'".into())),
        ("api_keys", "allowed_ips", set("allowed_ips = '[\"192.0.2.1\"]'".into())),
        ("api_keys", "budget_limit_cents", set("budget_limit_cents = 5, total_cost = 5".into())),
        ("users", "account_locked", format!("UPDATE {{users}} SET account_locked = '1' WHERE {user}")),
        ("budgets", "limit_cents", budget("user_id, NULL", &key)),
        ("budgets", "limit_cents", budget("user_id, id", &key)),
        (
            "budgets",
            "limit_cents",
            format!(
                "{}; UPDATE {{budgets}} SET current_usage_cents = 5",
                budget("user_id, NULL", &key).replace("5, 5", "5, 1")
            ),
        ),
    ];
    denials.extend(
        optional.into_iter().filter(|(table, column, _)| facts.is_plain(table, column)).map(|(.., sql)| sql),
    );
    if facts.has("api_keys", "expires_at") && !facts.is_plain("api_keys", "expires_at") {
        denials.push(set("name = 'ended'".into()));
    }
    denials
}

fn merges(schema: &Schema, key: &str) -> Vec<String> {
    let merge = format!("MERGE INTO {{api_keys}} k USING (SELECT 1 AS one) s ON k.{key} WHEN MATCHED THEN");
    vec![format!("{merge} UPDATE SET {}", schema.set_active(false)), format!("{merge} DELETE")]
}

/// Rows that SQLite deletes since another one takes their place.
fn replacements(key: &str, user: &str) -> Vec<String> {
    vec![
        format!(
            "INSERT OR REPLACE INTO {{api_keys}} (id, key_hash, key_prefix, user_id)
            SELECT id, 'replaced', 'ks_other', user_id FROM {{api_keys}} WHERE {key}"
        ),
        format!(
            "INSERT OR REPLACE INTO {{users}} (id, email, username, hashed_password, is_active)
            SELECT id, email, username, '!', '0' FROM {{users}} WHERE {user}"
        ),
        format!(
            "UPDATE OR REPLACE {{api_keys}} SET id = (SELECT id FROM {{api_keys}} WHERE {key})
            WHERE key_hash = (SELECT key_hash FROM {{api_keys}} WHERE NOT {key} LIMIT 1)"
        ),
    ]
}

fn budget(of: &str, key: &str) -> String {
    format!(
        "INSERT INTO {{budgets}} (id, user_id, api_key_id, limit_cents, current_usage_cents)
        SELECT 1 + (SELECT count(*) FROM {{budgets}}), {of}, 5, 5 FROM {{api_keys}} WHERE {key}"
    )
}

/// A denial of the key by what was added last, if there is one of it.
pub fn denial_by(schema: &Schema, facts: &Facts, hash: &str, word: &str, rng: &mut StdRng) -> Option<String> {
    let all = denials(schema, facts, hash);
    let of_it: Vec<_> = all.into_iter().filter(|sql| sql.contains(word)).collect();
    of_it.choose(rng).cloned()
}

/// Makes every key work that is there.
pub fn pardon(schema: &Schema, facts: &Facts) -> String {
    let mut sql = format!("UPDATE {{api_keys}} SET name = 'key', {}", schema.set_active(true));
    for column in ["deleted_at", "expires_at", "allowed_ips", "budget_limit_cents"] {
        if facts.is_plain("api_keys", column) {
            sql += &format!(", {column} = NULL");
        }
    }
    sql += "; UPDATE {users} SET is_active = '1'";
    if facts.has("users", "account_locked") {
        sql += ", account_locked = '0'";
    }
    sql += " WHERE id > 0";
    if facts.has("budgets", "limit_cents") {
        sql += "; DELETE FROM {budgets}";
    }
    sql
}

/// Changes that concern no decision.
pub const IRRELEVANT: &[&str] = &[
    "UPDATE {api_keys} SET last_used_at = '2026-01-01 00:00:00', total_requests = 7",
    "UPDATE {api_keys} SET name = name || '.'",
    "UPDATE {users} SET email = email || '.'",
];

/// The script as some session or other runs it.
pub fn in_a_session(sql: &str, is_postgres: bool, facts: &Facts, rng: &mut StdRng) -> String {
    let script = if is_postgres { in_a_postgres_session(sql, rng) } else { in_a_file_session(sql, rng) };
    // Sessions that have another search path name the tables in full.
    let in_full = is_postgres && script.contains("search_path");
    if in_full {
        return with_places(&script, facts);
    }
    TABLES.into_iter().fold(script, |script, table| script.replace(&format!("{{{table}}}"), table))
}

/// The script with the tables' names in full.
pub fn with_places(sql: &str, facts: &Facts) -> String {
    let script = sql.to_owned();
    TABLES
        .into_iter()
        .fold(script, |script, table| script.replace(&format!("{{{table}}}"), facts.place(table)))
}

const TABLES: [&str; 3] = ["api_keys", "users", "budgets"];

fn in_a_postgres_session(sql: &str, rng: &mut StdRng) -> String {
    match rng.random_range(0..12) {
        0 => format!("SET session_replication_role = replica; {sql}; RESET session_replication_role"),
        1 => format!("SET search_path = pg_catalog; {sql}; RESET search_path"),
        2 => format!("SET search_path = ''; {sql}; RESET search_path"),
        3 => format!("SET ROLE app; {sql}; RESET ROLE"),
        4 => format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {sql}; COMMIT"),
        5 => format!("BEGIN ISOLATION LEVEL SERIALIZABLE; {sql}; COMMIT"),
        6 => format!("BEGIN; SAVEPOINT a; {sql}; RELEASE a; SAVEPOINT b; ROLLBACK TO b; COMMIT"),
        7 => format!("DO $do$ BEGIN {sql}; EXCEPTION WHEN division_by_zero THEN NULL; END $do$"),
        8 => format!("BEGIN; DECLARE c CURSOR FOR SELECT 1; {sql}; CLOSE c; COMMIT"),
        9 => format!("SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'SQL, DMY'; {sql}; RESET ALL"),
        _ => sql.to_owned(),
    }
}

fn in_a_file_session(sql: &str, rng: &mut StdRng) -> String {
    if chance(rng, 30) {
        return format!("BEGIN IMMEDIATE; {sql}; COMMIT");
    }
    if chance(rng, 20) {
        return format!("PRAGMA recursive_triggers = on; {sql}");
    }
    sql.to_owned()
}
