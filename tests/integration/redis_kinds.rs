//! Redis in every form that it is run in: behind TLS, with a user of few rights, as a cluster, under a sentinel.

use std::time::Duration;

use crate::harness::{
    fleet::Fleet,
    postgres,
    process::free_port,
    redis::{Redis, free_cluster_port},
    service::Key,
    until,
};

const SECOND: Duration = Duration::from_secs(1);
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// All that Keystile needs to be allowed, as docs/guides/redis.md says it.
const RIGHTS: &str =
    "~keystile:* +hello +client|setname +client|id +info +ping +time +getrange +set +append +pexpire";

/// One instance reads a key from the database. Another instance then finds it in Redis.
async fn shares(url: &str, settings: &[(&str, &str)]) {
    let redis =
        [("KEYSTILE_REDIS_URL", url), ("KEYSTILE_CACHE_SECRET", SECRET), ("KEYSTILE_REDIS_TIMEOUT", "2s")];
    let settings = [settings, &redis].concat();
    let mut fleet = Fleet::start(1, &settings).await;
    let keys: Vec<Key> = (0..5).map(|_| fleet.key(&[])).collect();
    fleet.add(&fleet.schema.url(), &settings).await;
    for key in &keys {
        assert_eq!(fleet.status(0, key).await, 200);
        until("it is shared", 5 * SECOND, async || {
            // What the second has in memory from an attempt too early is dropped.
            fleet.run(&["invalidate", &key.credential[..8]]).done();
            assert_eq!(fleet.status(0, key).await, 200);
            tokio::time::sleep(SECOND / 10).await;
            let before = hits(&fleet).await;
            assert_eq!(fleet.status(1, key).await, 200);
            hits(&fleet).await > before
        })
        .await;
    }
    let stats = fleet.instances[1].setup.stats().await;
    assert!(stats["redis"]["memory_bytes"].as_u64() > Some(0), "{stats}");
}

/// Proofs that the second instance has found in Redis.
async fn hits(fleet: &Fleet) -> Option<u64> {
    fleet.instances[1].setup.stats().await["tiers"]["redis"]["proofs"]["hits"].as_u64()
}

#[tokio::test(flavor = "multi_thread")]
async fn server_behind_tls() {
    let folder = tempfile::tempdir().unwrap();
    let authority = postgres::certificates(folder.path());
    let port = free_port();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let redis = Redis::with(&[
        &format!("tls-port {port}"),
        &format!("tls-cert-file {}", file("server.pem")),
        &format!("tls-key-file {}", file("server.key")),
        &format!("tls-ca-cert-file {}", authority.display()),
        "tls-auth-clients no",
    ]);
    for host in ["localhost", "[::1]"] {
        let url = format!("rediss://{host}:{port}");
        shares(&url, &[("SSL_CERT_FILE", authority.to_str().unwrap())]).await;
    }
    drop(redis);
}

/// A cluster answers with addresses of its servers, here of IPv6.
#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_ipv6() {
    let single = Redis::start();
    shares(&format!("redis://[::1]:{}", single.address().port()), &[]).await;

    let node = Redis::cluster_of_one("::1", &[]);
    shares(&format!("redis-cluster://[::1]:{}", node.address().port()), &[]).await;

    let folder = tempfile::tempdir().unwrap();
    let authority = postgres::certificates(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    // The port among the nodes follows this one.
    let port = free_cluster_port();
    let node = Redis::cluster_of_one(
        "::1",
        &[
            "tls-cluster yes",
            &format!("tls-port {port}"),
            &format!("tls-cert-file {}", file("server.pem")),
            &format!("tls-key-file {}", file("server.key")),
            &format!("tls-ca-cert-file {}", authority.display()),
            "tls-auth-clients no",
        ],
    );
    shares(&format!("redis-cluster://[::1]:{}", node.address().port()), &[]).await;
    let trust = [("SSL_CERT_FILE", authority.to_str().unwrap())];
    shares(&format!("rediss-cluster://[::1]:{port}"), &trust).await;

    let sentinel = Redis::sentinel(&single);
    let port = sentinel.address().port();
    shares(&format!("redis-sentinel://[::1]:{port}?sentinelServiceName=main"), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn user_with_few_rights() {
    let user = format!("user keystile on >right-secret {RIGHTS}");
    let redis = Redis::with(&["user default off", &user]);
    shares(&format!("redis://keystile:right-secret@{}", redis.address()), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_of_three() {
    let nodes = Redis::cluster();
    let addresses = nodes.each_ref().map(Redis::address);
    let url = format!("redis-cluster://{}?node={}&node={}", addresses[0], addresses[1], addresses[2]);
    shares(&url, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_a_sentinel_names() {
    let master = Redis::start();
    let sentinel = Redis::sentinel(&master);
    let url = format!("redis-sentinel://{}?sentinelServiceName=main", sentinel.address());
    shares(&url, &[]).await;
}
