//! Tables, columns and indexes.

use super::{Examined, after, finds};
use crate::harness::place::Place;

async fn empty() -> [Place; 2] {
    [Place::no_file(), Place::empty_schema().await]
}

#[tokio::test]
async fn missing_table_and_column_are_found_and_nothing_else_is_examined() {
    for place in empty().await {
        place.execute("CREATE TABLE api_keys (id integer, key_hash text)").await;
        let examined = Examined::of(&place.url());
        examined.expect("table_missing", "error", "users");
        examined.expect("column_missing", "error", "api_keys.key_prefix");
        examined.expect("column_missing", "error", "api_keys.user_id");
        examined.expect("column_missing", "error", "api_keys.is_active");
        assert_eq!(examined.findings().len(), 4, "{:#}", examined.report);
    }
}

#[tokio::test]
async fn budgets_that_keystile_does_not_read_are_found() {
    for (columns, is_found) in [
        ("id integer, user_id integer, api_key_id integer, limit_cents integer", true),
        ("id integer, user_id integer, team text", false),
    ] {
        for place in [Place::sqlite().await, Place::postgres().await] {
            place.execute(&format!("CREATE TABLE budgets ({columns})")).await;
            let examined = Examined::of(&place.url());
            if is_found {
                let finding = examined.expect("budgets_ignored", "warning", "budgets");
                assert!(finding["fix"].as_str().unwrap().ends_with(": current_usage_cents"), "{finding}");
            } else {
                assert!(!examined.codes().contains(&"budgets_ignored"), "another application's table");
            }
        }
    }
}

#[tokio::test]
async fn revoked_key_that_keystile_allows_is_found() {
    let add = "ALTER TABLE api_keys ADD revoked_at timestamp";
    for examined in after(add).await {
        assert!(!examined.codes().contains(&"revocation_unread"), "it is not set");
    }
    let revoke = "UPDATE api_keys SET revoked_at = '2026-01-01 00:00:00'";
    finds(&format!("{add}; {revoke}"), "revocation_unread", "error", "api_keys.revoked_at", "3").await;
    for examined in after(&format!("{add}; {revoke}, is_active = false")).await {
        assert!(!examined.codes().contains(&"revocation_unread"), "the key is denied");
    }
    let user = "ALTER TABLE users ADD is_banned boolean; UPDATE users SET is_banned = true";
    finds(user, "revocation_unread", "error", "users.is_banned", "1").await;
}

#[tokio::test]
async fn restriction_that_keystile_does_not_read_is_found() {
    let add = "ALTER TABLE api_keys ADD allowed_domains json; UPDATE api_keys SET allowed_domains = ";
    finds(
        &format!("{add}'[\"example.com\"]'"),
        "restriction_unread",
        "warning",
        "api_keys.allowed_domains",
        "3",
    )
    .await;
    for examined in after(&format!("{add}'[]'")).await {
        assert!(!examined.codes().contains(&"restriction_unread"), "an empty list restricts nothing");
    }
}

#[tokio::test]
async fn column_that_keystile_does_not_read_is_a_note() {
    for examined in after("ALTER TABLE api_keys ADD team_id integer").await {
        let finding = examined.expect("column_unread", "note", "api_keys");
        assert!(finding["message"].as_str().unwrap().ends_with(": team_id"), "{finding}");
        assert_eq!(examined.status, 0);
    }
}

#[tokio::test]
async fn missing_index_is_found() {
    for examined in after("DROP INDEX api_keys_key_prefix").await {
        let finding = examined.expect("index_missing", "warning", "api_keys.key_prefix");
        let fix = "run CREATE INDEX api_keys_key_prefix ON api_keys (key_prefix)";
        assert_eq!(finding["fix"], fix);
        assert_eq!(examined.findings().iter().filter(|found| found["code"] == "index_missing").count(), 1);
    }
    // An index that does not cover every row serves no look-up.
    let partial =
        "DROP INDEX api_keys_key_prefix; CREATE INDEX active_keys ON api_keys (key_prefix) WHERE is_active";
    for examined in after(partial).await {
        examined.expect("index_missing", "warning", "api_keys.key_prefix");
    }
}

/// Views have no index and no triggers. Their rows are examined like any other.
#[tokio::test]
async fn rows_of_a_view_are_examined() {
    let view = "UPDATE api_keys SET rate_limit_per_day = -1; ALTER TABLE api_keys RENAME TO stored;
        CREATE VIEW api_keys AS SELECT * FROM stored";
    for place in [Place::sqlite_older().await, Place::postgres_older().await] {
        place.user().await;
        place.key("3", &[]).await;
        place.execute(view).await;
        let examined = Examined::of(&place.url());
        examined.expect("undecodable", "error", "api_keys.rate_limit_per_day");
        assert!(!examined.codes().contains(&"index_missing"), "{:#}", examined.report);
    }
}

#[tokio::test]
async fn rows_of_partitions_are_examined() {
    let place = Place::postgres_older().await;
    place.user().await;
    place.key("3", &[("rate_limit_per_day", Some("-1"))]).await;
    place.key("2000", &[("rate_limit_per_day", Some("-1"))]).await;
    let partitions = "ALTER TABLE api_keys RENAME TO plain;
        CREATE TABLE api_keys (LIKE plain INCLUDING DEFAULTS) PARTITION BY RANGE (id);
        CREATE TABLE api_keys_low PARTITION OF api_keys FOR VALUES FROM (0) TO (1000);
        CREATE TABLE api_keys_high PARTITION OF api_keys FOR VALUES FROM (1000) TO (3000);
        INSERT INTO api_keys TABLE plain; CREATE INDEX by_prefix ON api_keys (key_prefix)";
    place.execute(partitions).await;
    let examined = Examined::of(&place.url());
    let finding = examined.expect("undecodable", "error", "api_keys.rate_limit_per_day");
    assert_eq!(finding["examples"], serde_json::json!(["3", "2000"]));
    assert!(!examined.codes().contains(&"index_missing"), "{:#}", examined.report);
}

/// Names with capital letters need quotes in Postgres.
#[tokio::test]
async fn columns_with_capital_letters_are_examined() {
    let rename = "ALTER TABLE api_keys RENAME COLUMN key_prefix TO \"Key_Prefix\";
        ALTER TABLE api_keys RENAME COLUMN allowed_ips TO \"Allowed_IPs\";
        ALTER TABLE api_keys RENAME COLUMN id TO \"ID\";";
    for place in [Place::sqlite_older().await, Place::postgres_older().await] {
        place.user().await;
        place.key("3", &[("allowed_ips", Some("[7]"))]).await;
        place.execute(rename).await;
        let examined = Examined::of(&place.url());
        let finding = examined.expect("list_unreadable", "error", "api_keys.allowed_ips");
        assert_eq!(finding["examples"], serde_json::json!(["3"]));
        assert!(!examined.codes().contains(&"index_missing"), "{:#}", examined.report);
    }
}
