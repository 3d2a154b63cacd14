//! Tables, columns and prefixes are found by what they are called, and by nothing that is almost the same.

use keystile::{
    clock::Timestamps,
    record::{AllowList, Expiry},
    store::{Database, KeyStore},
};
use time::macros::datetime;

use super::{ids, only_record};
use crate::harness::place::{BUDGETS, CREDENTIAL, HASH, Place, options, prefix};

contract! { sqlite postgres: [prefix_is_compared_byte_for_byte] }

/// Rows of other prefixes that the column's collation takes for the same, more of them than are read at once.
async fn prefix_is_compared_byte_for_byte(place: &Place) {
    place.user().await;
    place
        .execute(match place.file() {
            Some(_) => {
                "DROP TABLE api_keys; CREATE TABLE api_keys (id integer PRIMARY KEY, key_hash text,
                    key_prefix text COLLATE NOCASE, user_id integer, is_active boolean, created_at timestamp)"
            }
            None => {
                // Some builds of Postgres have no ICU, although they list its collations.
                "DO $$ BEGIN
                    CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
                    ALTER TABLE api_keys ALTER COLUMN key_prefix TYPE varchar(20) COLLATE any_case;
                EXCEPTION WHEN feature_not_supported THEN
                    ALTER TABLE api_keys ALTER COLUMN key_prefix TYPE public.citext;
                END $$"
            }
        })
        .await;
    for id in 20..40 {
        let upper = CREDENTIAL[..8].to_uppercase();
        place.key(&id.to_string(), &[("key_prefix", Some(&upper))]).await;
    }
    assert!(place.records().await.expect("answers").is_empty(), "none is of this prefix");
    let found = place.database().find_keys(prefix().as_str()).await.expect("answers");
    assert_eq!(found.len(), 0, "and no command finds one by it");
    place.key("7", &[("created_at", Some("2020-01-01 00:00:00"))]).await;
    assert_eq!(ids(&place.records().await.expect("answers")), [7], "and none crowds it out");
    assert_eq!(place.undecodable(), 0, "they are no fault");
}

/// The same by way of a type.
#[tokio::test]
async fn prefix_of_a_type_without_case_is_compared_byte_for_byte() {
    let place = Place::postgres().await;
    place.user().await;
    place.key("7", &[("key_prefix", Some(&CREDENTIAL[..8].to_uppercase()))]).await;
    place.execute("ALTER TABLE api_keys ALTER COLUMN key_prefix TYPE public.citext").await;
    assert!(place.records().await.expect("answers").is_empty());
    place.key("8", &[]).await;
    assert_eq!(ids(&place.records().await.expect("answers")), [8]);
    let url = place.url().replace("&sslmode", ",public&sslmode");
    let database = Database::connect(&options(&url, 5_000), &place.metrics).expect("good settings");
    let found = database.records(prefix(), Timestamps::now()).await.expect("answers");
    assert_eq!(found.records.iter().map(|record| record.id.0).collect::<Vec<_>>(), [8]);
}

#[tokio::test]
async fn padded_prefix_is_the_prefix_and_one_with_spaces_of_its_own_is_another() {
    let place = Place::postgres().await;
    place.user().await;
    place.key("7", &[]).await;
    place.execute("ALTER TABLE api_keys ALTER COLUMN key_prefix TYPE char(12)").await;
    assert_eq!(ids(&place.records().await.expect("answers")), [7]);
    let spaces = "ALTER TABLE api_keys ALTER COLUMN key_prefix TYPE varchar(12);
        UPDATE api_keys SET key_prefix = key_prefix || '    '";
    place.execute(spaces).await;
    assert!(place.records().await.expect("answers").is_empty());
}

#[tokio::test]
async fn generated_columns_of_sqlite_are_read() {
    let place = Place::no_file();
    place
        .execute(&format!(
            "CREATE TABLE users (id integer PRIMARY KEY, flags integer, is_active boolean AS (flags & 1));
            INSERT INTO users (id, flags) VALUES (1, 1);
            CREATE TABLE api_keys (id integer PRIMARY KEY, key_prefix text, key_hash text, user_id integer,
                is_active boolean, settings text,
                expires_at text AS (settings ->> '$.end') VIRTUAL,
                allowed_ips text AS (settings -> '$.ips') STORED);
            INSERT INTO api_keys VALUES (7, '{}', '{HASH}', 1, true,
                '{{\"end\": \"2030-01-02 03:04:05\", \"ips\": [\"10.0.0.0/8\"]}}');",
            &CREDENTIAL[..8]
        ))
        .await;
    let record = only_record(&place).await;
    assert!(record.user.is_active);
    assert_eq!(record.expiry, Expiry::At(datetime!(2030-01-02 03:04:05 UTC)));
    assert_eq!(record.allowed.ips.to_string(), "10.0.0.0/8");
}

#[tokio::test]
async fn names_of_sqlite_are_found_in_any_case() {
    let place = Place::sqlite().await;
    place.user().await;
    place.key("7", &[]).await;
    place
        .execute(
            "ALTER TABLE api_keys RENAME TO x; ALTER TABLE x RENAME TO \"API_KEYS\";
            ALTER TABLE \"API_KEYS\" ADD COLUMN \"Deleted_At\" timestamp;
            ALTER TABLE \"API_KEYS\" RENAME COLUMN allowed_ips TO \"Allowed_IPs\"",
        )
        .await;
    place.execute(&BUDGETS.replace("TABLE budgets", "TABLE \"Budgets\"")).await;
    place.budget("3", &[]).await;
    place.execute("UPDATE api_keys SET allowed_ips = '[\"10.0.0.1\"]'").await;
    let record = only_record(&place).await;
    assert!(!record.is_deleted && record.allowed.ips != AllowList::Any);
    assert_eq!(record.period_budgets.rows.len(), 1);
    place.execute("UPDATE api_keys SET deleted_at = '2026-01-02 03:04:05'").await;
    assert!(only_record(&place).await.is_deleted);
}

/// Columns in any case; a quoted name of a table is another table.
#[tokio::test]
async fn columns_of_postgres_are_found_in_any_case() {
    let place = Place::empty_schema().await;
    place
        .execute(&format!(
            "CREATE TABLE \"Users\" (id int);
            CREATE TABLE users (\"Id\" int, \"Is_Active\" boolean, \"Role_Id\" int);
            CREATE TABLE roles (\"ID\" int, \"Name\" text);
            INSERT INTO users VALUES (1, true, 2); INSERT INTO roles VALUES (2, 'engineer');
            CREATE TABLE api_keys (\"Id\" int, \"Key_Prefix\" text, \"Key_Hash\" text, \"User_Id\" int,
                \"Is_Active\" boolean, is_active boolean, \"Deleted_At\" timestamp, \"Created_At\" timestamp);
            INSERT INTO api_keys VALUES (7, '{0}', '{HASH}', 1, true, false, NULL, now());
            CREATE TABLE budgets (\"Id\" int, \"User_Id\" int, \"Api_Key_Id\" int, \"Limit_Cents\" int,
                \"Current_Usage_Cents\" int);
            INSERT INTO budgets VALUES (3, 1, NULL, 100, 0)",
            &CREDENTIAL[..8]
        ))
        .await;
    let record = only_record(&place).await;
    assert!(!record.is_active, "of two, the one without quotes is meant");
    assert!(record.user.is_active && !record.is_deleted);
    assert_eq!((record.user.role.as_deref(), record.period_budgets.rows.len()), (Some("engineer"), 1));
    place.execute("UPDATE api_keys SET \"Deleted_At\" = now()").await;
    assert!(only_record(&place).await.is_deleted);
    let found = place.database().records(prefix(), Timestamps::now()).await.expect("answers");
    assert_eq!(found.records.len(), 1);
}
