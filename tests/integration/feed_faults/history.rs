//! A database that goes on from an earlier point, or that shows no open transactions.

use std::time::Duration;

use super::{
    LOG_EMPTY, REPLICA, committed, denied, denied_after, expect_cause, keys, memory_serves, migrate, revoke,
    warm,
};
use crate::harness::{
    cluster::{Cluster, Restored},
    promise::Instance,
    proxy::{Proxy, Wire},
};

/// Transactions that change nothing, one after the other.
const MANY: &str = "DO $$ BEGIN FOR i IN 1..300 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$";

#[tokio::test(flavor = "multi_thread")]
async fn revocation_on_a_promoted_standby_that_lagged_is_heard_of() {
    let primary = Cluster::start();
    let keys = keys::<2>(&primary.url());
    let mut standby = primary.standby();
    standby.catch_up_with(&primary).await;
    // What the primary commits from now on never reaches it.
    standby.stop();
    primary.execute(MANY).await;
    let proxy = Proxy::before(primary.address()).await;
    let instance = warm(&proxy.url(&primary.url(), primary.address()), &keys).await;
    drop(primary);
    standby.revive();
    standby.promote().await;
    standby.execute(&revoke(&keys[0])).await;
    let change = committed(&keys[0], "revoked on the promoted standby before Keystile reconnects");
    proxy.lead_to(standby.address());
    denied(&instance, &change).await;
    instance.wait_until_up().await;
    // And once everything is as usual again, within a second.
    instance.expect_allowed(&keys[1].credential).await;
    denied_after(&standby, &revoke(&keys[1]), &instance, &keys[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_serves_again_after_a_promotion() {
    let primary = Cluster::start();
    let [key] = keys::<1>(&primary.url());
    let mut standby = primary.standby();
    standby.catch_up_with(&primary).await;
    standby.stop();
    primary.execute(MANY).await;
    let proxy = Proxy::before(primary.address()).await;
    let instance = warm(&proxy.url(&primary.url(), primary.address()), std::slice::from_ref(&key)).await;
    // An entry that says that everything changed, of a transaction that the standby never had.
    primary.execute("INSERT INTO keystile_changes (prefix) VALUES (NULL)").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(primary);
    standby.revive();
    standby.promote().await;
    proxy.lead_to(standby.address());
    memory_serves(&instance, &key.credential).await;
    denied_after(&standby, &revoke(&key), &instance, &key).await;
}

async fn revocation_after_a_restore_is_heard_of(restored: Restored) {
    let mut server = Cluster::start();
    let keys = keys::<3>(&server.url());
    let backup = server.backup();
    server.execute(MANY).await;
    let proxy = Proxy::before(server.address()).await;
    let instance = warm(&proxy.url(&server.url(), server.address()), &keys).await;
    // The second time the same history begins again: by its name it is the one that Keystile knows.
    for key in &keys[..2] {
        proxy.cut();
        server.restore(&backup, restored);
        server.execute(&revoke(key)).await;
        let change = committed(key, "revoked in the restored database before Keystile reconnects");
        proxy.mend();
        denied(&instance, &change).await;
        memory_serves(&instance, &keys[2].credential).await;
        server.execute(MANY).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        for other in keys.iter().filter(|other| other.id != key.id) {
            instance.expect_allowed(&other.credential).await;
        }
    }
    denied_after(&server, &revoke(&keys[2]), &instance, &keys[2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_after_the_return_to_a_volume_snapshot_is_heard_of() {
    revocation_after_a_restore_is_heard_of(Restored::Snapshot).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_after_a_point_in_time_recovery_is_heard_of() {
    revocation_after_a_restore_is_heard_of(Restored::PointInTime).await;
}

/// The restored server has run through as many transactions as the lost one before Keystile finds it.
#[tokio::test(flavor = "multi_thread")]
async fn snapshot_that_has_caught_up_in_transactions_is_told_from_the_lost_server() {
    let mut server = Cluster::start();
    let [key] = keys::<1>(&server.url());
    let backup = server.backup();
    let proxy = Proxy::before(server.address()).await;
    server.execute(MANY).await;
    let instance = warm(&proxy.url(&server.url(), server.address()), std::slice::from_ref(&key)).await;
    proxy.cut();
    server.restore(&backup, Restored::Snapshot);
    server.execute(&revoke(&key)).await;
    let change = committed(&key, "revoked before Keystile reconnects");
    server.execute(MANY).await;
    server.execute(MANY).await;
    proxy.mend();
    denied(&instance, &change).await;
}

/// Whatever the feed waits for: what it says of itself is no older than its promise.
#[tokio::test(flavor = "multi_thread")]
async fn feed_that_gets_no_answer_says_so_within_a_second() {
    let server = Cluster::start();
    let [key] = keys::<1>(&server.url());
    let proxy = Proxy::before(server.address()).await;
    let instance = warm(&proxy.url(&server.url(), server.address()), std::slice::from_ref(&key)).await;
    proxy.set(Wire::Hanging);
    server.execute(&revoke(&key)).await;
    let change = committed(&key, "revoked while the database does not answer");
    let mended = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!instance.is_up().await);
        proxy.mend();
    };
    tokio::join!(mended, denied(&instance, &change));
}

#[tokio::test(flavor = "multi_thread")]
async fn change_that_is_open_while_a_standby_is_read_is_not_lost() {
    let primary = Cluster::start();
    let [key, other] = keys::<2>(&primary.url());
    let standby = primary.standby();
    standby.catch_up_with(&primary).await;
    let instance = Instance::start(&standby.url(), &[]).await;
    instance.expect_allowed(&key.credential).await;
    let mut client = primary.client().await;
    let open = client.transaction().await.unwrap();
    open.batch_execute(&revoke(&key)).await.unwrap();
    // Later transactions are committed and read meanwhile.
    primary.execute(&format!("UPDATE api_keys SET name = 'other' WHERE id = {}", other.id)).await;
    primary.execute(MANY).await;
    standby.catch_up_with(&primary).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    instance.expect_allowed(&key.credential).await;
    open.commit().await.unwrap();
    denied(&instance, &committed(&key, "committed while the standby is read")).await;
    expect_cause(&instance, REPLICA).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn standby_that_lags_lengthens_no_record() {
    let primary = Cluster::start();
    let [key] = keys::<1>(&primary.url());
    let standby = primary.standby();
    standby.catch_up_with(&primary).await;
    let instance = Instance::start(&standby.url(), &[("KEYSTILE_RECORD_TTL", "25s")]).await;
    instance.expect_allowed(&key.credential).await;
    standby.pause_replay().await;
    primary.execute(&revoke(&key)).await;
    let change = committed(&key, "revoked while replay is paused");
    // The record is read again in the last seconds of the pause. As if it were new, it would be used for another 25 s.
    while change.committed.elapsed() < Duration::from_secs(26) {
        let _ = instance.status(&key.credential).await;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    standby.resume_replay().await;
    denied(&instance, &change).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_of_another_cluster_hides_nothing_and_drops_nothing_for_ever() {
    let (old, new) = (Cluster::start(), Cluster::start());
    for _ in 0..10 {
        old.execute(MANY).await;
    }
    let [key] = keys::<1>(&old.url());
    old.execute("INSERT INTO keystile_changes (prefix) VALUES (NULL)").await;
    new.load(&old.dump());
    let instance = Instance::start(&new.url(), &[]).await;
    instance.expect_allowed(&key.credential).await;
    if !instance.is_up().await {
        expect_cause(&instance, LOG_EMPTY).await;
        migrate(&new.url());
    }
    memory_serves(&instance, &key.credential).await;
    denied_after(&new, &revoke(&key), &instance, &key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dump_that_is_loaded_over_the_database_counts() {
    let (far, server) = (Cluster::start(), Cluster::start());
    let keys = keys::<2>(&server.url());
    server.execute(&revoke(&keys[0])).await;
    let dump = server.dump();
    server.execute("UPDATE api_keys SET is_active = true").await;
    let instance = warm(&server.url(), &keys).await;
    server.load(&dump);
    denied(&instance, &committed(&keys[0], "a dump in which the key is revoked is loaded")).await;
    // The same from a cluster that is far ahead.
    for _ in 0..10 {
        far.execute(MANY).await;
    }
    far.load(&dump);
    far.execute("UPDATE api_keys SET name = 'moved'").await;
    server.load(&far.dump());
    memory_serves(&instance, &keys[1].credential).await;
    denied_after(&server, &revoke(&keys[1]), &instance, &keys[1]).await;
}
