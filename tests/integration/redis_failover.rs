//! Redis that moves: the next address is tried, and the name is looked up again.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use fred::interfaces::KeysInterface;
use keystile::{metrics::Metrics, redis::Redis as Client};

use crate::harness::{
    fleet::Fleet,
    names::{BlackHole, Names},
    process::free_port,
    proxy::Proxy,
    redis::Redis,
    until,
};

const SECOND: Duration = Duration::from_secs(1);
/// Within which everything is to be found again.
const FOUND: Duration = Duration::from_secs(5);

fn client(names: &Arc<Names>) -> Client {
    let metrics = Metrics::new().unwrap();
    let url = "redis://redis.example:6379".parse().unwrap();
    Client::connect_by(&url, Duration::from_millis(100), &metrics, names.clone()).unwrap()
}

/// Whether a value can be written.
async fn writes(client: &Client, metrics: &Metrics) -> bool {
    let duration = metrics.store_duration("redis", "write");
    let set = |client: fred::clients::Client| async move {
        client.set::<(), _, _>("keystile:test", "1", None, None, false).await
    };
    client.call(&duration, set).await.is_ok()
}

async fn until_it_writes(what: &str, client: &Client) {
    let metrics = Metrics::new().unwrap();
    until(what, FOUND, async || writes(client, &metrics).await).await;
}

fn refusing() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn address_that_is_silent_is_passed_over_and_not_tried_first_again() {
    let mut redis = Redis::start();
    let (first, second) = (BlackHole::open().await, BlackHole::open().await);
    let client = client(&Names::new(&[first.address, second.address, refusing(), redis.address()]));
    until_it_writes("the last address is found", &client).await;
    // Two seconds would pass if the silent ones came first.
    redis.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    tokio::time::sleep(SECOND / 10).await;
    until("it is found again", SECOND, async || client.ping().await.is_ok()).await;
    redis.kill();
    until("it is lost", SECOND, async || client.ping().await.is_err()).await;
    redis.revive();
    until("it is found again", FOUND, async || client.ping().await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_accepts_and_does_not_answer_is_passed_over() {
    let (frozen, redis) = (Redis::start(), Redis::start());
    frozen.freeze();
    let client = client(&Names::new(&[frozen.address(), redis.address()]));
    until_it_writes("the other address is found", &client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn name_is_looked_up_again_when_its_server_is_lost_or_hangs() {
    let (mut first, second, third) = (Redis::start(), Redis::start(), Redis::start());
    let names = Names::new(&[first.address()]);
    let client = client(&names);
    until_it_writes("the first is found", &client).await;
    first.kill();
    until("it is lost", SECOND, async || client.ping().await.is_err()).await;
    names.set(&[second.address()]);
    until_it_writes("the second is found", &client).await;
    second.freeze();
    names.set(&[third.address()]);
    until_it_writes("the third is found", &client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn primary_that_becomes_a_replica_is_left_for_the_new_primary() {
    let (first, second) = (Redis::start(), Redis::start());
    second.follow(&first);
    let client = client(&Names::new(&[first.address(), second.address()]));
    until_it_writes("the primary is found", &client).await;
    // Its connections stay open.
    second.promote();
    first.follow(&second);
    until_it_writes("the new primary is found", &client).await;
    first.promote();
    second.follow(&first);
    until_it_writes("and the one after it", &client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_without_its_primary_is_left() {
    let replica =
        Redis::with(&["replica-serve-stale-data no", &format!("replicaof 127.0.0.1 {}", free_port())]);
    let redis = Redis::start();
    let client = client(&Names::new(&[replica.address(), redis.address()]));
    // It says MASTERDOWN to reads.
    until("the other is found", FOUND, async || client.ping().await.is_ok()).await;
    until_it_writes("the other is found", &client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_still_loads_is_left_and_found_once_it_has_loaded() {
    let image = tempfile::tempdir().unwrap();
    let folder = format!("dir {}", image.path().display());
    let full = Redis::with(&[&folder, "rdbcompression no"]);
    // While it loads, it answers after every two million bytes.
    for n in 0..60 {
        full.command(&["SET", &format!("filler:{n}"), &"x".repeat(1_000_000)]);
    }
    full.command(&["SAVE"]);
    // Six seconds for all of them.
    let loading = Redis::with(&["key-load-delay 100000", &folder]);
    let redis = Redis::start();
    let both = client(&Names::new(&[loading.address(), redis.address()]));
    until_it_writes("the other is found", &both).await;
    let alone = client(&Names::new(&[loading.address()]));
    until("it says that it loads", FOUND, async || {
        alone.ping().await.is_err_and(|error| error.to_string().contains("LOADING"))
    })
    .await;
    until("it is found", 20 * SECOND, async || alone.ping().await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_and_limits_come_back_after_a_failover_without_a_restart() {
    let (first, second) = (Redis::start(), Redis::start());
    second.follow(&first);
    let proxy = Proxy::before(first.address()).await;
    let url = proxy.url(&first.url(), first.address());
    let settings = [
        ("KEYSTILE_REDIS_URL", url.as_str()),
        ("KEYSTILE_RATE_LIMIT", "redis"),
        ("KEYSTILE_REDIS_TIMEOUT", "1s"),
    ];
    let fleet = Fleet::start(1, &settings).await;
    let key = fleet.key(&["--rate-limit-per-minute", "1000"]);
    assert_eq!(fleet.status(0, &key).await, 200);
    // The name leads to the new primary; the connection to the old one lives on.
    second.promote();
    first.follow(&second);
    proxy.lead_new_to(second.address());
    let fresh = fleet.key(&["--rate-limit-per-minute", "1000"]);
    assert_eq!(fleet.status(0, &fresh).await, 200);
    let name = format!("keystile:{{{}}}", &fresh.credential[..8]);
    until("records are shared by the new primary", FOUND, async || {
        fleet.run(&["invalidate", &fresh.credential[..8]]).done();
        assert_eq!(fleet.status(0, &fresh).await, 200);
        second.dump().contains(&name)
    })
    .await;
    until("limits are counted by the new primary", FOUND, async || {
        fleet.status(0, &fresh).await;
        second.dump().contains(&format!("keystile:{{{}}}:limit", fresh.id))
    })
    .await;
}
