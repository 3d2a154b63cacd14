//! The audit log: every change is recorded, with who made it, and no secret.

use keystile::store::{AuditFilter, Database, DisplayRow};
use serde_json::{Value, json};

use crate::harness::{
    keystile::keystile,
    place::{BUDGETS, HASH, Place},
};

mod follow;
mod roles;
mod sqlite;
mod writers;

async fn entries(database: &Database) -> Vec<DisplayRow> {
    database.audit(&AuditFilter::default(), None).await.expect("is read").entries
}

/// What an entry says: source, action, table and row, and the values before and after.
fn said(entry: &DisplayRow) -> Value {
    let text = |column| entry.text(column);
    let row = format!("{} {} {} {}", text("source"), text("action"), text("table_name"), text("row_id"));
    json!([row, entry.get("before_values"), entry.get("after_values")])
}

/// What the entries say that a script leaves.
async fn said_of(place: &Place, sql: &str) -> Vec<Value> {
    let database = place.database();
    let before = entries(&database).await.len();
    place.execute(sql).await;
    entries(&database).await[before..].iter().map(said).collect()
}

/// Each kind of database, with a user and a key.
async fn places() -> [Place; 4] {
    let places = [
        Place::sqlite().await,
        Place::postgres().await,
        Place::sqlite_older().await,
        Place::postgres_older().await,
    ];
    for place in &places {
        place.execute(BUDGETS).await;
        place.database().migrate(None).await.expect("migrates");
        place.user().await;
        place.key("7", &[]).await;
    }
    places
}

#[tokio::test]
async fn change_by_plain_sql_is_recorded_with_the_columns_that_changed() {
    for place in places().await {
        let made = entries(&place.database()).await;
        let made: Vec<_> = made.iter().map(said).collect();
        assert_eq!(made[0][0], "sql insert users 1");
        assert_eq!(made[1][0], "sql insert api_keys 7");
        assert_eq!(made[1][1], Value::Null);
        assert_eq!(made[1][2]["user_id"], 1);
        assert_eq!(made[1][2].get("expires_at"), None, "what is not set is no change: {}", made[1]);
        let update =
            "UPDATE api_keys SET is_active = {false}, scopes = '[\"a\", \"b\"]', name = 'it''s' WHERE id = 7";
        let no = if place.file().is_some() { "0" } else { "false" };
        let update = said_of(&place, &update.replace("{false}", no)).await;
        assert_eq!(
            update,
            [json!(["sql update api_keys 7",
                { "is_active": true, "scopes": null, "name": null },
                { "is_active": false, "scopes": ["a", "b"], "name": "it's" }])]
        );
        let update = said_of(&place, "UPDATE users SET email = 'eve@example.com'").await;
        let emails = [json!({ "email": "ada@example.com" }), json!({ "email": "eve@example.com" })];
        assert_eq!(update, [json!(["sql update users 1", emails[0], emails[1]])]);
        place.budget("3", &[]).await;
        let update = said_of(&place, "UPDATE budgets SET limit_cents = 7, current_usage_cents = 5").await;
        assert_eq!(update, [json!(["sql update budgets 3", { "limit_cents": 100 }, { "limit_cents": 7 }])]);
        let moved = said_of(&place, "UPDATE api_keys SET id = 8").await;
        assert!(moved.is_empty(), "no column that is shown has changed: {moved:?}");
        let gone = said_of(&place, "DELETE FROM api_keys").await;
        assert_eq!(gone[0][0], "sql delete api_keys 8");
        assert_eq!(gone[0][1]["name"], "it's");
        assert_eq!(gone[0][2], Value::Null);
    }
}

#[tokio::test]
async fn change_of_a_hash_is_recorded_without_the_hash() {
    for place in places().await {
        let update = said_of(&place, "UPDATE api_keys SET key_hash = key_hash || '.'").await;
        let [old, new] = ["(not shown)", "(another, not shown)"].map(|text| json!({ "key_hash": text }));
        assert_eq!(update, [json!(["sql update api_keys 7", old, new])]);
    }
}

#[tokio::test]
async fn use_of_a_key_records_nothing() {
    for place in places().await {
        place.budget("3", &[]).await;
        let used = "UPDATE api_keys SET total_requests = 5, total_tokens = 6, total_cost = 7,
                last_used_at = '2026-01-01 00:00:00', updated_at = '2026-01-01 00:00:00', is_active = is_active;
            UPDATE users SET last_login = '2026-01-01 00:00:00'; UPDATE budgets SET current_usage_cents = 5";
        let said = said_of(&place, used).await;
        assert!(said.is_empty(), "{said:?}");
    }
}

#[tokio::test]
async fn command_is_recorded_with_its_user_and_host() {
    for place in [Place::sqlite().await, Place::postgres().await] {
        let url = place.url();
        let run =
            |arguments: &[&str]| keystile(&[arguments, &["--output", "json"]].concat(), &url, "").json();
        run(&["users", "create", "--email", "ada@example.com", "--username", "ada"]);
        let key = run(&["keys", "create", "--user", "ada@example.com", "--scope", "read"]);
        let id = key["id"].to_string();
        run(&["keys", "revoke", &id]);
        run(&["users", "disable", "ada@example.com"]);
        let csv = format!("key_hash,key_prefix,user_id\n{HASH},ks_sampl,1\n");
        keystile(&["keys", "import", "--format", "csv", "-"], &url, &csv).done();
        let entries = entries(&place.database()).await;
        let said: Vec<_> = entries.iter().map(said).collect();
        let rows: Vec<_> = said.iter().map(|said| said[0].as_str().expect("a text")).collect();
        let expected = [
            "user create users 1",
            &format!("user create api_keys {id}"),
            &format!("user revoke api_keys {id}"),
            "user disable users 1",
        ];
        assert_eq!(rows[..4], expected);
        assert!(rows[4].starts_with("user import api_keys"), "{rows:?}");
        assert_eq!(said[2][1], json!({ "is_active": true }));
        assert_eq!(said[2][2], json!({ "is_active": false }));
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        for entry in &entries {
            assert_eq!(entry.text("origin"), host);
            assert!(!entry.text("actor").is_empty());
            assert_eq!(entry.text("database_role").is_empty(), place.file().is_some());
        }
    }
}

/// The canary: everything that is secret in a session with each command.
#[tokio::test]
async fn no_secret_is_recorded() {
    for place in [Place::sqlite().await, Place::postgres().await] {
        let url = place.url();
        let run =
            |arguments: &[&str]| keystile(&[arguments, &["--output", "json"]].concat(), &url, "").json();
        run(&["users", "create", "--email", "ada@example.com", "--username", "ada"]);
        let key = run(&["keys", "create", "--user", "ada@example.com"]);
        let csv = format!("key_hash,key_prefix,user_id\n{HASH},ks_sampl,1\n");
        keystile(&["keys", "import", "--format", "csv", "-"], &url, &csv).done();
        run(&["keys", "revoke", &key["id"].to_string()]);
        run(&["users", "disable", "1"]);
        place.execute("UPDATE users SET hashed_password = 'correct horse'").await;
        place.execute("UPDATE api_keys SET key_hash = 'battery staple'").await;
        place.execute("DELETE FROM api_keys; DELETE FROM users").await;
        let recorded = entries(&place.database()).await;
        assert!(recorded.len() >= 9, "{recorded:?}");
        let recorded = serde_json::to_string(&recorded).expect("is JSON");
        let credential = key["credential"].as_str().expect("a text");
        // All of a key that follows its prefix is secret.
        for secret in [&credential[8..], "$2b$", &HASH[7..], "correct horse", "battery staple"] {
            assert!(!recorded.contains(secret), "{secret} in {recorded}");
        }
        assert!(recorded.contains(&credential[..8]), "a key is known by its prefix");
        if place.file().is_some() {
            let left = place.value("SELECT CAST(count(*) AS text) FROM keystile_audit_before").await;
            assert_eq!(left.as_deref(), Some("0"), "no value stays elsewhere");
            let left = place.value("SELECT CAST(count(*) AS text) FROM keystile_audit_actor").await;
            assert_eq!(left.as_deref(), Some("0"), "the actor ends with its transaction");
        }
    }
}

#[tokio::test]
async fn changes_are_listed_by_key_user_actor_and_time() {
    for place in [Place::sqlite().await, Place::postgres().await] {
        place.user().await;
        let eve = [("id", Some("2")), ("email", Some("eve@example.com")), ("username", Some("eve"))];
        let rest = [("hashed_password", Some("!")), ("is_active", Some("1"))];
        place.insert("users", &[&eve[..], &rest].concat()).await;
        place.key("7", &[]).await;
        place.key("8", &[("user_id", Some("2")), ("key_prefix", Some("ks_other"))]).await;
        let url = place.url();
        keystile(&["keys", "revoke", "7"], &url, "").done();
        place.execute("DELETE FROM api_keys WHERE id = 8; DELETE FROM users WHERE id = 2").await;
        let listed = |arguments: &[&str]| {
            let run = keystile(&[&["audit", "--output", "json"], arguments].concat(), &url, "");
            let lines = run.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
            let rows = lines.map(|entry| {
                let text = |column: &str| entry[column].as_str().unwrap_or_default().to_owned();
                format!("{} {} {}", text("action"), text("table_name"), text("row_id"))
            });
            rows.collect::<Vec<_>>()
        };
        let of_7 = ["insert api_keys 7", "revoke api_keys 7"];
        assert_eq!(listed(&["--key", "7"]), of_7);
        assert_eq!(listed(&["--key", "ks_sampl"]), of_7);
        let of_8 = ["insert api_keys 8", "delete api_keys 8"];
        assert_eq!(listed(&["--key", "ks_other"]), of_8, "also of a key that is gone");
        let of_eve = ["insert users 2", "insert api_keys 8", "delete api_keys 8", "delete users 2"];
        assert_eq!(listed(&["--user", "eve@example.com"]), of_eve, "also of a user who is gone");
        assert_eq!(listed(&["--user", "2"]), of_eve);
        assert_eq!(listed(&["--limit", "2"]), of_eve[2..]);
        assert_eq!(listed(&["--since", "1h"]).len(), 7);
        let name = entries(&place.database()).await[4].text("actor");
        assert_eq!(listed(&["--actor", &name]), ["revoke api_keys 7"]);
        let table = keystile(&["audit", "--key", "7"], &url, "").stdout;
        assert!(
            table.lines().nth(1).is_some_and(|line| line.contains("is_active: true -> false")),
            "{table}"
        );
        let later = "UPDATE keystile_audit SET changed_at = '2026-01-01 00:00:00' WHERE id < 5";
        place.execute(later).await;
        assert_eq!(listed(&["--since", "2026-02-01T00:00:00Z"]).len(), 3);
        let pruned = keystile(&["audit", "--prune-before", "2026-02-01T00:00:00Z"], &url, "");
        assert_eq!(
            pruned.stdout, "deleted 4 entries from before 2026-02-01T00:00:00Z\n",
            "{}",
            pruned.stderr
        );
        assert_eq!(listed(&[]).len(), 4, "and who deleted them is recorded");
        assert_eq!(listed(&["--limit", "1"]), ["prune keystile_audit "]);
    }
}

#[tokio::test]
async fn database_without_an_audit_log_works_as_before() {
    for place in [Place::sqlite_older().await, Place::postgres_older().await] {
        let url = place.url();
        let run = |arguments: &[&str]| keystile(arguments, &url, "");
        run(&["users", "create", "--email", "ada@example.com", "--username", "ada"]).done();
        run(&["keys", "create", "--user", "ada@example.com"]).done();
        let refused = run(&["audit"]);
        assert_eq!(refused.status, 1);
        assert!(refused.stderr.contains("run `keystile migrate`"), "{}", refused.stderr);
        // As with a database of the version before: the next migration makes it.
        let migrated = run(&["migrate"]);
        assert!(migrated.stdout.contains("changes of keys and users are audited now"), "{}", migrated.stdout);
        let again = run(&["migrate"]);
        assert!(
            again.stdout.contains("changes of keys and users are audited, as before"),
            "{}",
            again.stdout
        );
        run(&["users", "disable", "1"]).done();
        assert!(run(&["audit"]).stdout.contains("disable users 1 (ada@example.com)"));
    }
}
