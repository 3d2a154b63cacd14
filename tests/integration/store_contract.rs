//! What every store does alike: the same tests over each form of database.

use keystile::{
    clock::Timestamps,
    config::AccountLock,
    record::{AllowList, Expiry, KeyRecord, Lock},
    revocation::{ChangeLog, LogRead, Reading, Since, verify},
    store::{KeyStore, LogInstallation, MAX_ENTRIES, MAX_RECORDS},
};
use time::macros::datetime;

use crate::harness::place::{Place, prefix};

/// Puts each test in a module for each form of database.
macro_rules! contract {
    ($($place:ident)*: $tests:tt) => { $(contract!(@ $place $tests);)* };
    (@ $place:ident [$($test:ident)*]) => {
        mod $place {
            $(
                #[tokio::test]
                async fn $test() {
                    let place = crate::harness::place::Place::$place().await;
                    super::$test(&place).await;
                }
            )*
        }
    };
}

contract! {
    sqlite sqlite_older postgres postgres_older: [
        every_column_is_read_with_its_user
        records_come_newest_first_and_eight_at_the_most
        nulls_are_inactive_and_unrestricted
        infinity_never_expires_and_its_negative_always_has
        undecodable_row_denies_itself_alone_and_is_counted
        unreadable_list_denies_and_is_counted
        deleted_at_is_read_where_there_is_one
        key_without_its_user_is_undecodable
        unknown_prefix_has_no_records
        change_by_another_process_is_seen_at_once
        migrating_again_changes_nothing
        database_that_fits_answers_a_ping
        calls_are_measured
        costliest_hash_of_an_active_key_is_found
    ]
}

mod budgets;
mod changed_types;
mod names;
mod types;

mod newer {
    use super::{
        change_of_more_than_one_reading_gets_is_told_as_such, first_reading_of_the_log_has_every_change,
        ignored_lock_is_not_read, locks_and_agents_are_read, log_is_whole_with_every_trigger_and_no_fewer,
        role_is_read_from_its_column,
    };
    contract! {
        sqlite postgres: [
            log_is_whole_with_every_trigger_and_no_fewer
            locks_and_agents_are_read
            ignored_lock_is_not_read
            role_is_read_from_its_column
            first_reading_of_the_log_has_every_change
            change_of_more_than_one_reading_gets_is_told_as_such
        ]
    }
}

mod older {
    use super::{absent_columns_read_as_null, role_is_read_through_its_table};
    contract! { sqlite_older postgres_older: [absent_columns_read_as_null role_is_read_through_its_table] }
}

fn ids(records: &[KeyRecord]) -> Vec<i64> {
    records.iter().map(|record| record.id.0).collect()
}

async fn only_record(place: &Place) -> KeyRecord {
    let mut records = place.records().await.expect("answers");
    assert_eq!(records.len(), 1, "{records:?}");
    records.remove(0)
}

async fn every_column_is_read_with_its_user(place: &Place) {
    place.user().await;
    let changes = [
        ("name", Some("build server")),
        ("expires_at", Some("2030-01-02 03:04:05.25")),
        ("scopes", Some(r#"["chat", "embed"]"#)),
        ("tags", Some(r#"["team:a"]"#)),
        ("permissions", Some(r#"{"files": "read"}"#)),
        ("allowed_models", Some(r#"["m-1", "m-2"]"#)),
        ("allowed_endpoints", Some(r#"["/v1"]"#)),
        ("allowed_ips", Some(r#"["10.0.0.0/8"]"#)),
        ("allowed_chatbots", Some(r#"["7"]"#)),
        ("rate_limit_per_minute", Some("60")),
        ("rate_limit_per_hour", Some("0")),
        ("rate_limit_per_day", Some("10000")),
        ("is_unlimited", Some("0")),
        ("budget_limit_cents", Some("5000")),
        ("budget_type", Some("total")),
        ("total_cost", Some("12.5")),
    ];
    place.key("7", &changes).await;
    let record = only_record(place).await;
    assert_eq!((record.id.0, record.user.id.0), (7, 1));
    assert_eq!(record.name.as_deref(), Some("build server"));
    assert_eq!(record.prefix, prefix());
    assert_eq!(record.hash.cost(), Some(4));
    assert!(record.is_active);
    assert_eq!(record.expiry, Expiry::At(datetime!(2030-01-02 03:04:05.25 UTC)));
    assert_eq!(record.scopes, ["chat", "embed"]);
    assert_eq!(record.tags, ["team:a"]);
    assert_eq!(record.permissions.as_deref(), Some(r#"{"files":"read"}"#));
    assert_eq!(record.allowed.models.to_string(), "m-1, m-2");
    assert_eq!(record.allowed.endpoints.to_string(), "/v1");
    assert_eq!(record.allowed.ips.to_string(), "10.0.0.0/8");
    assert_eq!(record.allowed.chatbots, AllowList::Only(vec!["7".into()]));
    assert_eq!(
        (record.limits.minute, record.limits.hour, record.limits.day),
        (Some(60), Some(0), Some(10_000))
    );
    assert_eq!((record.budget.unlimited, record.budget.limit_cents), (Some(false), Some(5_000)));
    assert_eq!((record.budget.kind.as_deref(), record.budget.spent_cents), (Some("total"), Some(12.5)));
    assert_eq!(record.user.name.as_deref(), Some("ada"));
    assert_eq!(record.user.email.as_deref(), Some("ada@example.com"));
    assert!(record.user.is_active && !record.user.is_superuser);
    assert_eq!(place.undecodable(), 0);
}

async fn records_come_newest_first_and_eight_at_the_most(place: &Place) {
    place.user().await;
    for (id, created) in [
        ("1", None),
        ("2", Some("2026-01-01 00:00:00")),
        ("3", Some("2026-03-01 00:00:00")),
        ("4", Some("2026-02-01 00:00:00")),
        ("5", Some("2026-02-01 00:00:00")),
        ("6", Some("2025-01-01 00:00:00")),
        ("7", Some("2026-02-01 00:00:00.5")),
        ("8", None),
        ("9", Some("2024-01-01 00:00:00")),
    ] {
        place.key(id, &[("created_at", created)]).await;
    }
    let records = place.records().await.expect("answers");
    assert_eq!(ids(&records), [3, 7, 5, 4, 2, 6, 9, 8]);
    assert_eq!(records.len(), MAX_RECORDS);
}

async fn nulls_are_inactive_and_unrestricted(place: &Place) {
    place.user().await;
    place.execute("UPDATE users SET is_active = NULL").await;
    let changes = [("is_active", None), ("scopes", Some("null")), ("allowed_ips", Some("null"))];
    place.key("1", &[&changes[..], &[("allowed_models", Some("[]")), ("created_at", None)]].concat()).await;
    let record = only_record(place).await;
    assert!(!record.is_active && !record.user.is_active);
    assert!(record.scopes.is_empty());
    assert_eq!(record.allowed, keystile::record::Restrictions::default());
    assert_eq!(record.limits, keystile::record::Limits::default());
    assert_eq!((record.expiry, record.permissions), (Expiry::Never, None));
}

async fn infinity_never_expires_and_its_negative_always_has(place: &Place) {
    place.user().await;
    place.key("1", &[("expires_at", Some("infinity"))]).await;
    place.key("2", &[("expires_at", Some("-infinity"))]).await;
    let records = place.records().await.expect("answers");
    let expiries: Vec<_> = records.iter().map(|record| record.expiry).collect();
    assert_eq!(expiries, [Expiry::Always, Expiry::Never]);
}

async fn undecodable_row_denies_itself_alone_and_is_counted(place: &Place) {
    place.user().await;
    place.key("1", &[("scopes", Some(r#"{"chat": true}"#))]).await;
    place.key("2", &[("key_hash", Some("not a hash"))]).await;
    place.key("3", &[("rate_limit_per_day", Some("-1"))]).await;
    place.key("4", &[]).await;
    assert_eq!(ids(&place.records().await.expect("answers")), [4]);
    assert_eq!(place.undecodable(), 3);
}

async fn unreadable_list_denies_and_is_counted(place: &Place) {
    place.user().await;
    // A JSON string that holds a list: unwrapped once too often, it would open the key.
    place.key("1", &[("allowed_models", Some(r#""[]""#)), ("allowed_ips", Some("[1]"))]).await;
    let record = only_record(place).await;
    assert_eq!((record.allowed.models, record.allowed.ips), (AllowList::Unreadable, AllowList::Unreadable));
    assert_eq!(place.undecodable(), 2);
}

async fn deleted_at_is_read_where_there_is_one(place: &Place) {
    place.user().await;
    place.key("1", &[]).await;
    assert!(!only_record(place).await.is_deleted);
    place.execute("ALTER TABLE api_keys ADD COLUMN deleted_at timestamp").await;
    assert!(!only_record(place).await.is_deleted);
    for deleted in ["2026-01-02 03:04:05", "2999-01-01 00:00:00", "infinity"] {
        place.execute(&format!("UPDATE api_keys SET deleted_at = '{deleted}'")).await;
        assert!(only_record(place).await.is_deleted, "{deleted}");
    }
}

async fn key_without_its_user_is_undecodable(place: &Place) {
    place.user().await;
    place.key("1", &[]).await;
    // The tables that Keystile makes refuse this; those of others may not.
    let orphaned = match place.file() {
        Some(_) => "PRAGMA foreign_keys = off; UPDATE api_keys SET user_id = 99",
        None => {
            "ALTER TABLE api_keys DROP CONSTRAINT IF EXISTS api_keys_user_id_fkey;
             UPDATE api_keys SET user_id = 99"
        }
    };
    place.execute(orphaned).await;
    assert!(place.records().await.expect("answers").is_empty());
    assert_eq!(place.undecodable(), 1);
}

async fn unknown_prefix_has_no_records(place: &Place) {
    place.user().await;
    place.key("1", &[("key_prefix", Some("ks_other"))]).await;
    // Not a pattern, not a piece of SQL.
    place.key("2", &[("key_prefix", Some("ks_samp%"))]).await;
    assert!(place.records().await.expect("answers").is_empty());
}

async fn change_by_another_process_is_seen_at_once(place: &Place) {
    place.user().await;
    place.key("1", &[]).await;
    let database = place.database();
    let is_active = async || {
        let found = database.records(prefix(), Timestamps::now()).await.expect("answers");
        found.records[0].is_active
    };
    assert!(is_active().await);
    place.execute("UPDATE api_keys SET is_active = '0'").await;
    assert!(!is_active().await);
}

/// One read of the log, which there must be.
async fn read_log(place: &Place, since: Option<Since>) -> Reading {
    match place.database().read(since).await.expect("answers") {
        LogRead::Read(reading) => *reading,
        LogRead::Missing => panic!("no log"),
    }
}

async fn first_reading_of_the_log_has_every_change(place: &Place) {
    place.user().await;
    place.key("1", &[]).await;
    place.execute("UPDATE api_keys SET is_active = NULL").await;
    let written = place.value("SELECT CAST(count(*) AS text) FROM keystile_changes").await.expect("a count");
    assert_ne!(written, "0");
    let changes = read_log(place, None).await;
    assert_eq!(changes.logged.len().to_string(), written);
}

async fn change_of_more_than_one_reading_gets_is_told_as_such(place: &Place) {
    let since = |reading: Reading| {
        let anchor = reading.evidence.anchor;
        reading.position.map(|position| Since { position, anchor })
    };
    let before = since(read_log(place, None).await);
    for more in [MAX_ENTRIES, 1, 10] {
        let numbers = format!(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {more})
            INSERT INTO keystile_changes (prefix) SELECT 'ks_many1' FROM n"
        );
        place.execute(&numbers).await;
        let changes = read_log(place, before.clone()).await;
        assert_eq!((changes.logged.len(), changes.is_cut), (MAX_ENTRIES, more != MAX_ENTRIES));
        assert_eq!(changes.prefixes().is_none(), changes.is_cut);
        let after = read_log(place, since(changes)).await;
        assert_eq!(after.logged, [], "what is left out is not caught up with: everything was dropped");
    }
}

async fn log_is_whole_with_every_trigger_and_no_fewer(place: &Place) {
    let database = place.database();
    let is_whole = async || verify(&read_log(place, None).await.evidence, None).problems.is_empty();
    assert!(is_whole().await);
    let lose = match place.file() {
        Some(_) => "DROP TRIGGER keystile_changed_api_keys_delete",
        None => "DROP TRIGGER keystile_changed_rows ON api_keys",
    };
    place.execute(lose).await;
    assert!(!is_whole().await, "deletions are not logged");
    assert_eq!(database.migrate(None).await.expect("migrates").log, LogInstallation::Installed);
    assert!(is_whole().await);
}

async fn migrating_again_changes_nothing(place: &Place) {
    place.user().await;
    place.key("1", &[]).await;
    let migrated = place.database().migrate(None).await.expect("migrates");
    assert_eq!((migrated.created, migrated.kept), (vec![], vec!["users", "api_keys"]));
    assert_eq!(migrated.warnings, Vec::<String>::new());
    assert_eq!(ids(&place.records().await.expect("answers")), [1]);
}

async fn database_that_fits_answers_a_ping(place: &Place) {
    place.database().ping().await.expect("fits");
}

async fn calls_are_measured(place: &Place) {
    place.records().await.expect("answers");
    let store = if place.file().is_some() { "sqlite" } else { "postgres" };
    let text = place.metrics.render();
    for line in [
        format!(r#"keystile_store_duration_seconds_count{{store="{store}",operation="records"}} 1"#),
        format!(r#"keystile_store_up{{store="{store}"}} 1"#),
    ] {
        assert!(text.contains(&line), "{line} in {text}");
    }
}

async fn locks_and_agents_are_read(place: &Place) {
    place.user().await;
    let lists = [
        ("allowed_agents", Some(r#"["a", 7]"#)),
        ("allowed_chatbots", Some("[8]")),
        ("allowed_extract_templates", Some(r#"["invoice"]"#)),
    ];
    place.key("1", &lists).await;
    let record = only_record(place).await;
    assert_eq!(record.allowed.agents, AllowList::Only(vec!["a".into(), "7".into()]));
    assert_eq!(record.allowed.chatbots, AllowList::Only(vec!["8".into()]));
    assert_eq!(record.allowed.extract_templates, AllowList::Only(vec!["invoice".into()]));
    assert_eq!(record.user.lock, Lock::Open);
    place
        .execute("UPDATE users SET account_locked = '1', account_locked_until = '2030-01-02 03:04:05'")
        .await;
    assert_eq!(only_record(place).await.user.lock, Lock::Until(datetime!(2030-01-02 03:04:05 UTC)));
    place.execute("UPDATE users SET account_locked_until = NULL").await;
    assert_eq!(only_record(place).await.user.lock, Lock::Closed);
}

async fn ignored_lock_is_not_read(place: &Place) {
    place.user().await;
    place.key("1", &[]).await;
    place.execute("UPDATE users SET account_locked = '1', account_locked_until = NULL").await;
    for (setting, lock) in [(AccountLock::Deny, Lock::Closed), (AccountLock::Ignore, Lock::Ignored)] {
        let database = place.database().with_account_lock(setting);
        let found = database.records(prefix(), Timestamps::now()).await.expect("answers");
        assert_eq!(found.records[0].user.lock, lock);
    }
}

async fn role_is_read_from_its_column(place: &Place) {
    place.user().await;
    place.key("1", &[]).await;
    place.execute("UPDATE users SET role = 'engineer'").await;
    assert_eq!(only_record(place).await.user.role.as_deref(), Some("engineer"));
}

async fn role_is_read_through_its_table(place: &Place) {
    place.user().await;
    place.key("1", &[]).await;
    assert_eq!(only_record(place).await.user.role, None);
    place.execute("UPDATE users SET role_id = 2").await;
    assert_eq!(only_record(place).await.user.role.as_deref(), Some("engineer"));
}

async fn absent_columns_read_as_null(place: &Place) {
    place.user().await;
    place.key("1", &[]).await;
    for column in ["scopes", "allowed_ips", "expires_at", "created_at", "total_cost", "name"] {
        place.execute(&format!("ALTER TABLE api_keys DROP COLUMN {column}")).await;
    }
    let record = only_record(place).await;
    assert_eq!((record.allowed.agents, record.user.lock), (AllowList::Any, Lock::Open));
    assert_eq!(record.allowed.extract_templates, AllowList::Any);
    assert_eq!((record.name, record.expiry), (None, Expiry::Never));
}

async fn costliest_hash_of_an_active_key_is_found(place: &Place) {
    let database = place.database();
    assert_eq!(database.highest_cost().await.expect("answers"), None);
    place.user().await;
    let hash = |cost: u32| format!("$2b${cost:02}$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy");
    for (id, cost, active) in [("1", 6, "1"), ("2", 10, "1"), ("3", 13, "0"), ("4", 31, "1")] {
        let changes = [("key_hash", Some(hash(cost))), ("is_active", Some(active.to_owned()))];
        let changes: Vec<_> = changes.iter().map(|(name, value)| (*name, value.as_deref())).collect();
        place.key(id, &changes).await;
    }
    place.key("5", &[("key_hash", Some("not a hash"))]).await;
    assert_eq!(database.highest_cost().await.expect("answers"), Some(10));
}
