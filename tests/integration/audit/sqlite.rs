//! What may happen to a SQLite file whose changes are audited.

use serde_json::json;

use super::{entries, said, said_of};
use crate::harness::{keystile::keystile, place::Place};

async fn file() -> Place {
    let place = Place::sqlite().await;
    place.user().await;
    place.key("7", &[]).await;
    place
}

#[tokio::test]
async fn audited_column_can_be_dropped_and_renamed() {
    let place = file().await;
    let update = "ALTER TABLE api_keys DROP COLUMN description; ALTER TABLE api_keys DROP COLUMN allowed_ips;
        UPDATE api_keys SET name = 'new', total_requests = 1";
    let said = said_of(&place, update).await;
    assert_eq!(said, [json!(["sql update api_keys 7", { "name": null }, { "name": "new" }])]);
    // What is left is recorded, so Keystile's own changes go on, also past an index of the application's.
    place.execute("CREATE UNIQUE INDEX one_of_each ON users (email, username)").await;
    let create = ["users", "create", "--email", "eve@example.com", "--username", "eve"];
    keystile(&create, &place.url(), "").done();
    let last = super::said(entries(&place.database()).await.last().expect("an entry"));
    assert!(last[0].as_str().is_some_and(|text| text.contains("create users")), "{last}");
    // A column that the triggers do not have stops them.
    place.execute("ALTER TABLE api_keys ADD COLUMN deleted_at timestamp").await;
    let update = ["keys", "update", "7", "--name", "third"];
    let refused = keystile(&update, &place.url(), "").failed(1);
    assert!(refused.contains("nothing was changed"), "{refused}");
    // The end of access does not wait.
    keystile(&["keys", "revoke", "7"], &place.url(), "").done();
    keystile(&["migrate"], &place.url(), "").done();
    keystile(&update, &place.url(), "").done();
    place
        .execute(
            "ALTER TABLE users RENAME COLUMN username TO login; UPDATE users SET login = 'ada2' WHERE id = 1",
        )
        .await;
}

#[tokio::test]
async fn row_that_is_replaced_is_recorded_as_deleted() {
    let place = file().await;
    let insert = "INTO api_keys (id, name, key_hash, key_prefix, user_id, is_active)
        VALUES (7, 'other', 'h', 'ks_other', 1, 1)";
    let said = said_of(&place, &format!("INSERT OR REPLACE {insert}")).await;
    let mut rows: Vec<_> = said.iter().map(|said| said[0].as_str().expect("a text")).collect();
    rows.sort_unstable();
    assert_eq!(rows, ["sql delete api_keys 7", "sql insert api_keys 7"]);
    let said = said_of(&place, &format!("INSERT OR IGNORE {insert}")).await;
    assert!(said.is_empty(), "{said:?}");
    let upsert = format!("INSERT {insert} ON CONFLICT (id) DO UPDATE SET name = 'third'");
    let said = said_of(&place, &upsert).await;
    assert_eq!(said, [json!(["sql update api_keys 7", { "name": "other" }, { "name": "third" }])]);
    let said = said_of(&place, "PRAGMA recursive_triggers = on; DELETE FROM api_keys").await;
    assert_eq!(said.len(), 1, "{said:?}");
}

/// Values that JSON cannot hold do not fail a statement.
#[tokio::test]
async fn odd_values_are_recorded_as_text() {
    let place = file().await;
    for value in [
        "x'00ff'",
        "9e999",
        "-9e999",
        "char(0, 34, 92)",
        "'\u{1f511}'",
        "CAST(x'ff' AS text)",
        "-9223372036854775808",
    ] {
        let said = said_of(&place, &format!("UPDATE api_keys SET name = {value}, tags = {value}")).await;
        assert_eq!(said.len(), 1, "{value}");
    }
    assert!(entries(&place.database()).await.len() > 7);
}

#[tokio::test]
async fn command_makes_no_change_that_cannot_be_recorded() {
    for harm in [
        "DROP TRIGGER keystile_audited_api_keys_update",
        "CREATE TRIGGER full BEFORE INSERT ON keystile_audit BEGIN SELECT RAISE(ABORT, 'no room'); END",
    ] {
        let place = file().await;
        place.execute(harm).await;
        let refused = keystile(&["keys", "revoke", "7"], &place.url(), "");
        assert_eq!(refused.status, 1, "{harm}");
        assert!(
            refused.stderr.contains("no trigger") || refused.stderr.contains("no room"),
            "{}",
            refused.stderr
        );
        let active = place.value("SELECT CAST(is_active AS text) FROM api_keys").await;
        assert_eq!(active.as_deref(), Some("1"), "{harm}");
        let report = keystile(&["doctor", "--output", "json"], &place.url(), "").stdout;
        assert_eq!(report.contains("audit_incomplete"), harm.starts_with("DROP"), "{report}");
    }
}

#[tokio::test]
async fn change_of_a_computed_column_is_recorded() {
    let place = Place::no_file();
    place
        .execute(
            "CREATE TABLE users (id integer PRIMARY KEY, email text);
            CREATE TABLE api_keys (id integer PRIMARY KEY, key_hash text, key_prefix text, user_id integer, state text,
                is_active boolean GENERATED ALWAYS AS (state = 'on') VIRTUAL);
            INSERT INTO api_keys (id, key_hash, key_prefix, user_id, state) VALUES (7, 'h', 'ks_sampl', 1, 'on')",
        )
        .await;
    place.database().migrate(None).await.expect("migrates");
    let recorded = said_of(&place, "UPDATE api_keys SET state = 'off'").await;
    assert_eq!(recorded, [json!(["sql update api_keys 7", { "is_active": true }, { "is_active": false }])]);
    let all: Vec<_> = entries(&place.database()).await.iter().map(said).collect();
    assert_eq!(all.len(), 1);
}
