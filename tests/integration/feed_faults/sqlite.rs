//! A SQLite file that is replaced, restored or altered under an instance.

use std::{fs, path::Path, time::Duration};

use rusqlite::{Connection, backup::Backup};

use super::{FILE_REPLACED, TRIGGERS, committed, denied, expect_cause, keys, memory_serves};
use crate::harness::{
    promise::Instance,
    service::{Key, Setup},
};

/// A file with keys in it, and an instance that has them in memory.
async fn start<const N: usize>() -> (Instance, [Key; N]) {
    let setup = Setup::new();
    let keys = keys::<N>(&setup.database_url);
    let instance = Instance::of(setup.start(&[]).await).await;
    instance.wait_until_up().await;
    for key in &keys {
        instance.expect_allowed(&key.credential).await;
    }
    (instance, keys)
}

fn file(instance: &Instance) -> std::path::PathBuf {
    instance.keystile.setup.path("keystile.db")
}

fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(5)).unwrap();
    connection
}

fn revoke(path: &Path, key: &Key) {
    open(path).execute_batch(&super::revoke(key)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn file_that_is_renamed_over_the_database_is_noticed() {
    let (instance, [key, other]) = start().await;
    let path = file(&instance);
    let copy = instance.keystile.setup.path("copy.db");
    open(&path).execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
    // It has the key revoked already: no trigger tells anybody.
    revoke(&copy, &key);
    let _ = open(&path).execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
    fs::rename(&copy, &path).unwrap();
    // What belonged to the old file is no part of the new one.
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{suffix}", path.display()));
    }
    denied(&instance, &committed(&key, "a file without the key is renamed over the database")).await;
    // By hand, as the operator does who sees the old file go on.
    let setup = &instance.keystile.setup;
    let run = setup.run(&["keys", "revoke", &other.id.to_string()]);
    let change = committed(&other, "revoked in the new file");
    assert!(run.status.success());
    denied(&instance, &change).await;
    if !instance.is_up().await {
        expect_cause(&instance, FILE_REPLACED).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn file_that_is_copied_over_with_its_log_is_noticed() {
    let (instance, [key]) = start().await;
    let path = file(&instance);
    let side = |suffix: &str| Path::new(&format!("{}{suffix}", path.display())).to_owned();
    let copy = instance.keystile.setup.path("copy.db");
    open(&path).execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
    revoke(&copy, &key);
    // As a deployment does: away with the old one and what belongs to it, and the new one in its place.
    for old in [path.clone(), side("-wal"), side("-shm")] {
        let _ = fs::remove_file(old);
    }
    fs::copy(&copy, &path).unwrap();
    denied(&instance, &committed(&key, "the file is removed, and another is put in its place")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_into_the_open_file_is_noticed() {
    let (instance, [key, other]) = start().await;
    let path = file(&instance);
    let copy = instance.keystile.setup.path("copy.db");
    open(&path).execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
    revoke(&copy, &key);
    // More is logged in the file that is open than in the one that is restored.
    for _ in 0..5 {
        open(&path).execute_batch("UPDATE api_keys SET name = name || '.'").unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    instance.expect_allowed(&key.credential).await;
    instance.expect_allowed(&other.credential).await;
    let source = open(&copy);
    let mut target = open(&path);
    Backup::new(&source, &mut target)
        .unwrap()
        .run_to_completion(1000, Duration::from_millis(1), None)
        .unwrap();
    drop(target);
    let change = committed(&key, "a file without the key is restored into the database");
    denied(&instance, &change).await;
    instance.expect_allowed(&other.credential).await;
    revoke(&path, &other);
    denied(&instance, &committed(&other, "revoked after the restore")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_serves_again_after_the_tables_of_a_file_change() {
    let (instance, [key, other]) = start().await;
    let path = file(&instance);
    open(&path).execute_batch("ALTER TABLE api_keys ADD COLUMN of_the_application text").unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // One more entry in the log, of another key.
    revoke(&path, &other);
    denied(&instance, &committed(&other, "revoked after the tables changed")).await;
    memory_serves(&instance, &key.credential).await;
}

/// The steps that SQLite's documentation gives for changes that ALTER TABLE cannot make.
#[tokio::test(flavor = "multi_thread")]
async fn table_of_a_file_that_is_made_anew_is_watched_or_the_feed_says_so() {
    let (instance, [key]) = start().await;
    let path = file(&instance);
    let made = "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = 'api_keys'";
    let made: String = open(&path).query_row(made, [], |row| row.get(0)).unwrap();
    let steps = format!(
        "PRAGMA foreign_keys = off; BEGIN IMMEDIATE; {}; INSERT INTO new_keys SELECT * FROM api_keys;
        DROP TABLE api_keys; ALTER TABLE new_keys RENAME TO api_keys; COMMIT",
        made.replacen("api_keys", "new_keys", 1)
    );
    open(&path).execute_batch(&steps).unwrap();
    instance.expect_allowed(&key.credential).await;
    revoke(&path, &key);
    denied(&instance, &committed(&key, "revoked in a table that was made anew")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn column_that_is_added_to_a_file_counts() {
    let (instance, [key]) = start().await;
    let path = file(&instance);
    open(&path).execute_batch("ALTER TABLE api_keys ADD COLUMN deleted_at timestamp").unwrap();
    instance.expect_allowed(&key.credential).await;
    open(&path).execute_batch("UPDATE api_keys SET deleted_at = '2026-01-01 00:00:00'").unwrap();
    denied(&instance, &committed(&key, "deleted_at is set, which was added later")).await;
    if !instance.is_up().await {
        expect_cause(&instance, TRIGGERS).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_that_are_created_in_a_file_count() {
    for table in ["budgets", "Budgets"] {
        let (instance, [key]) = start().await;
        let path = file(&instance);
        let sql = format!(
            "CREATE TABLE {table} (id integer PRIMARY KEY, user_id integer, api_key_id integer,
                limit_cents integer, current_usage_cents integer)"
        );
        open(&path).execute_batch(&sql).unwrap();
        instance.expect_allowed(&key.credential).await;
        let spent = format!("INSERT INTO {table} SELECT 1, user_id, id, 5, 5 FROM api_keys");
        open(&path).execute_batch(&spent).unwrap();
        denied(&instance, &committed(&key, &format!("a spent budget is put into {table}"))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prefix_that_differs_in_case_is_no_prefix_of_the_key_in_a_file() {
    let setup = Setup::new();
    super::migrate(&setup.database_url);
    // As an application may have made it: prefixes compare without regard to case.
    setup.execute(
        "PRAGMA writable_schema = on;
        UPDATE sqlite_schema SET sql = replace(sql, 'key_prefix text NOT NULL', 'key_prefix text NOT NULL COLLATE NOCASE')
            WHERE name = 'api_keys';
        PRAGMA writable_schema = reset; REINDEX",
    );
    let [key] = keys::<1>(&setup.database_url);
    setup.execute("UPDATE api_keys SET key_prefix = upper(key_prefix)");
    let instance = Instance::of(setup.start(&[]).await).await;
    instance.wait_until_up().await;
    println!("with a prefix in another case: {}", instance.status(&key.credential).await);
    revoke(&file(&instance), &key);
    denied(&instance, &committed(&key, "revoked where prefixes compare without regard to case")).await;
}
