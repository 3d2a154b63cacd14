//! The change feed: what keeps it from being up.

use super::{Examined, after, sound};
use crate::harness::{cluster::Cluster, keystile::keystile, place::Place};

async fn in_postgres(change: &str) -> Examined {
    let [_, postgres] = after_postgres(change).await;
    postgres
}

/// The change is for Postgres alone.
async fn after_postgres(change: &str) -> [Examined; 2] {
    let places = sound().await;
    places[1].execute(change).await;
    places.each_ref().map(|place| Examined::of(&place.url()))
}

#[tokio::test]
async fn missing_log_is_found() {
    for place in [Place::sqlite_older().await, Place::postgres_older().await] {
        let examined = Examined::of(&place.url());
        let finding = examined.expect("feed_log_missing", "warning", "");
        assert!(finding["fix"].as_str().unwrap().contains("keystile migrate"), "{finding}");
        keystile(&["migrate"], &place.url(), "").done();
        assert!(!Examined::of(&place.url()).codes().contains(&"feed_log_missing"));
    }
}

#[tokio::test]
async fn missing_or_incomplete_audit_log_is_found() {
    for place in [Place::sqlite_older().await, Place::postgres_older().await] {
        Examined::of(&place.url()).expect("audit_missing", "note", "");
        keystile(&["migrate"], &place.url(), "").done();
        let codes = Examined::of(&place.url());
        assert!(!codes.codes().iter().any(|code| code.starts_with("audit")), "{:?}", codes.codes());
        let trigger = if place.file().is_some() {
            "keystile_audited_users_update"
        } else {
            "keystile_audited ON users"
        };
        place.execute(&format!("DROP TRIGGER {trigger}")).await;
        let examined = Examined::of(&place.url());
        let finding = examined.expect("audit_incomplete", "warning", "keystile_audit");
        assert!(finding["message"].as_str().unwrap().contains("keystile_audited"), "{finding}");
        assert!(finding["fix"].as_str().unwrap().contains("keystile migrate"), "{finding}");
    }
}

#[tokio::test]
async fn missing_trigger_is_found() {
    let [sqlite, postgres] = sound().await;
    sqlite.execute("DROP TRIGGER keystile_changed_api_keys_update").await;
    postgres.execute("DROP TRIGGER keystile_changed ON api_keys").await;
    for (place, trigger) in [(sqlite, "keystile_changed_api_keys_update"), (postgres, "keystile_changed on ")]
    {
        let examined = Examined::of(&place.url());
        let finding = examined.expect("feed_triggers", "warning", "");
        assert!(finding["message"].as_str().unwrap().contains(trigger), "{finding}");
        assert_eq!(examined.status, 0, "a revoked key is denied within 30 s");
    }
}

#[tokio::test]
async fn trigger_of_another_version_is_found() {
    let [sqlite, postgres] = sound().await;
    let older = "DROP TRIGGER keystile_changed_api_keys_delete;
        CREATE TRIGGER keystile_changed_api_keys_delete AFTER DELETE ON api_keys FOR EACH ROW BEGIN SELECT 1; END";
    sqlite.execute(older).await;
    postgres
        .execute(
            "CREATE OR REPLACE FUNCTION keystile_log_api_keys() RETURNS trigger LANGUAGE plpgsql
        SECURITY DEFINER AS $$ BEGIN RETURN NULL; END $$",
        )
        .await;
    for place in [sqlite, postgres] {
        Examined::of(&place.url()).expect("feed_triggers", "warning", "");
    }
}

#[tokio::test]
async fn empty_log_is_found() {
    for examined in after("DELETE FROM keystile_changes").await {
        examined.expect("feed_log_empty", "warning", "");
    }
}

#[tokio::test]
async fn column_that_the_triggers_do_not_watch_is_found() {
    let [sqlite, postgres] = after("ALTER TABLE api_keys ADD deleted_at timestamp").await;
    let finding = postgres.expect("feed_columns", "warning", "");
    assert!(finding["message"].as_str().unwrap().contains("api_keys.deleted_at"), "{finding}");
    sqlite.expect("feed_triggers", "warning", "");
}

#[tokio::test]
async fn lost_change_is_found() {
    in_postgres("SELECT nextval('keystile_changes_lost')").await.expect("feed_writes_lost", "warning", "");
}

#[tokio::test]
async fn dropped_column_is_found() {
    let examined = in_postgres("ALTER TABLE api_keys DROP COLUMN allowed_chatbots").await;
    examined.expect("feed_dropped_columns", "warning", "");
}

#[tokio::test]
async fn missing_notifications_are_a_note() {
    let [_, postgres] = sound().await;
    keystile(&["migrate", "--notify=off"], &postgres.url(), "").done();
    let examined = Examined::of(&postgres.url());
    examined.expect("feed_not_notified", "note", "");
    assert_eq!(examined.report["warnings"], 0, "{:#}", examined.report);
}

#[tokio::test(flavor = "multi_thread")]
async fn standby_is_found() {
    let primary = Cluster::start();
    keystile(&["migrate"], &primary.url(), "").done();
    let standby = primary.standby();
    standby.catch_up_with(&primary).await;
    assert!(!Examined::of(&primary.url()).codes().contains(&"feed_replica"));
    Examined::of(&standby.url()).expect("feed_replica", "warning", "");
}
