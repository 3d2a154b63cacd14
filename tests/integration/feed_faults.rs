//! The change feed says that it is up only while it can keep its promise: one test for each way to break that.
//!
//! In each test a key is in an instance's memory, something happens to the database, and a committed change denies the
//! key. Then the key is denied within a second, or the feed says that it is not up and the key is denied within 30 s.

use std::time::{Duration, Instant};

use crate::harness::{
    cluster::Cluster,
    promise::{Change, Denied, Instance, SECOND},
    service::{Key, Setup},
    until,
};

mod history;
mod pooler;
mod schema;
mod sqlite;
mod writers;

/// Which causes `keystile_change_feed_degraded` may name. Here alone, so that a new name has one place.
const REPLICA: &[&str] = &["replica"];
const COLUMNS: &[&str] = &["columns", "triggers"];
const TRIGGERS: &[&str] = &["triggers", "columns"];
const ROWS_HIDDEN: &[&str] = &["rows_hidden"];
const LOG_MISSING: &[&str] = &["log_missing", "triggers"];
/// Nothing in the log is of this cluster.
const LOG_EMPTY: &[&str] = &["log_empty"];
const FILE_REPLACED: &[&str] = &["file_replaced", "identity"];

/// A database with Keystile's tables and triggers, a user, and keys of theirs.
fn keys<const N: usize>(database_url: &str) -> [Key; N] {
    let setup = Setup::with_database(database_url);
    migrate(database_url);
    setup.create_user("ada");
    [(); N].map(|()| setup.create_key("ada", &[]))
}

fn migrate(database_url: &str) {
    let output = Setup::with_database(database_url).run(&["migrate"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// One instance whose feed is up, with these keys in its memory.
async fn warm(database_url: &str, keys: &[Key]) -> Instance {
    let instance = Instance::start(database_url, &[]).await;
    instance.wait_until_up().await;
    // What is left of the start is over: the first readings of the log, the first uses of the keys.
    for _ in 0..2 {
        for key in keys {
            instance.expect_allowed(&key.credential).await;
        }
        tokio::time::sleep(SECOND).await;
    }
    instance
}

fn committed(key: &Key, what: &str) -> Change {
    Change { credential: key.credential.clone(), committed: Instant::now(), what: what.to_owned() }
}

/// Runs a script that commits the denial of a key, and waits for the denial.
async fn denied_after(cluster: &Cluster, sql: &str, instance: &Instance, key: &Key) -> Denied {
    cluster.execute(sql).await;
    denied(instance, &committed(key, sql)).await
}

async fn denied(instance: &Instance, change: &Change) -> Denied {
    let denied = instance.denies_as_promised(change).await;
    let denied = denied.unwrap_or_else(|problem| panic!("{problem}"));
    println!(
        "{}: denied after {:?}, feed {}",
        change.what,
        denied.after,
        if denied.was_down { "down" } else { "up" }
    );
    denied
}

/// The feed says that it is not up, and why.
async fn expect_cause(instance: &Instance, causes: &[&str]) {
    until("the feed names the cause", Duration::from_secs(10), async || {
        let feed = instance.feed().await;
        !feed.up && feed.causes.iter().any(|cause| causes.contains(&&**cause))
    })
    .await;
}

/// The feed comes up, and from then on look-ups are answered from memory.
async fn memory_serves(instance: &Instance, credential: &str) {
    instance.wait_until_up().await;
    until("memory serves", Duration::from_secs(5), async || {
        let before = instance.memory_hits().await;
        for _ in 0..5 {
            instance.expect_allowed(credential).await;
        }
        instance.memory_hits().await >= before + 4
    })
    .await;
}

fn revoke(key: &Key) -> String {
    format!("UPDATE api_keys SET is_active = false WHERE id = {}", key.id)
}
