//! Keys are changed all the time, by plain SQL and by the command line.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::{
    keys::{Key, OWN_PATH, Role},
    load::Record,
    oracle::Truth,
    world::World,
};
use crate::harness::service::Setup;

/// Between two changes, in milliseconds.
const PAUSE: std::ops::Range<u64> = 150..450;
/// A key expires so long after its expiry is written.
const EXPIRY: Duration = Duration::from_millis(1500);
const TIMEOUT: Duration = Duration::from_secs(3);

/// Changes keys until the record is over.
pub async fn run(world: Arc<World>, record: Arc<Record>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed ^ 0xC0FFEE);
    while !record.is_over() {
        change(&world, &mut rng).await;
        tokio::time::sleep(Duration::from_millis(rng.random_range(PAUSE))).await;
    }
}

async fn change(world: &World, rng: &mut StdRng) {
    let servers = world.servers.lock().await;
    let changed: Vec<_> = world.of(Role::Known).chain(world.of(Role::Restricted)).collect();
    let denied: Vec<_> = changed.iter().filter(|key| key.now() == Truth::Denied).copied().collect();
    let is_full = denied.len() * 3 > changed.len();
    let key = if is_full || (!denied.is_empty() && rng.random_bool(0.3)) {
        *denied.choose(rng).unwrap()
    } else {
        *changed.choose(rng).unwrap()
    };
    let sent = Instant::now();
    if key.now() == Truth::Allowed && rng.random_bool(0.15) {
        let (database, id) = (Setup::with_database(&servers.primary.url()), key.id.to_string());
        let revoked = tokio::task::block_in_place(|| database.run(&["keys", "revoke", &id]));
        assert!(revoked.status.success(), "{}", String::from_utf8_lossy(&revoked.stderr));
        world.read(&servers, sent).await;
        return;
    }
    let is_denial = key.now() == Truth::Allowed;
    let sql = if is_denial { denial(key, rng) } else { pardon(key) };
    let client = servers.client().await.expect("a primary that no fault holds");
    let done = tokio::time::timeout(TIMEOUT, client.batch_execute(&sql)).await.expect("in time");
    done.unwrap_or_else(|error| panic!("{error:?} in {sql}"));
    if sql.contains("interval") {
        // Denied from its expiry on, whenever the row was read.
        tokio::time::sleep(EXPIRY.saturating_sub(sent.elapsed())).await;
    }
    world.read(&servers, sent).await;
}

/// A statement that denies the key.
fn denial(key: &Key, rng: &mut StdRng) -> String {
    let Key { id, user, .. } = key;
    let set = |column: &str| format!("UPDATE api_keys SET {column} WHERE id = {id}");
    match rng.random_range(0..7) {
        0 | 1 => set("is_active = false"),
        2 => format!("DELETE FROM api_keys WHERE id = {id}"),
        3 => format!("UPDATE users SET is_active = false WHERE id = {user}"),
        4 => set("key_hash = 'replaced'"),
        5 => set("allowed_endpoints = '[\"/v1/other\"]'"),
        _ => set(&format!(
            "expires_at = (now() AT TIME ZONE 'UTC') + interval '{} ms'",
            EXPIRY.as_millis() - 300
        )),
    }
}

/// Statements that allow it again.
fn pardon(key: &Key) -> String {
    let Key { id, user, hash, .. } = key;
    let prefix = &key.credential[..8];
    let endpoints =
        if key.role == Role::Restricted { format!("'[\"{OWN_PATH}\"]'") } else { "NULL".to_owned() };
    format!(
        "BEGIN; UPDATE users SET is_active = true WHERE id = {user} AND NOT is_active;
         DELETE FROM api_keys WHERE id = {id};
         INSERT INTO api_keys (id, user_id, name, key_prefix, key_hash, is_active, allowed_endpoints)
         VALUES ({id}, {user}, 'torture', '{prefix}', '{hash}', true, {endpoints}); COMMIT"
    )
}
