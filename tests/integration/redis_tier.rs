//! What instances share by way of Redis, and how little they trust it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use keystile::{
    clock::Timestamps,
    config::AccountLock,
    credential::{CacheSecret, CacheSecrets},
    decision::Tier,
    revocation::Fence,
    store::{Database, KeyStore, RedisTier, RedisTierConfig},
};

use crate::harness::{
    client::{ask, status},
    fleet::Fleet,
    place::{Place, prefix},
    postgres,
    postgres::Schema,
    proxy::{Proxy, Wire},
    redis::Redis,
    service::Key,
    until,
};

const SECOND: Duration = Duration::from_secs(1);
const SECRET: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210";

/// Patient with Redis: these tests are not about how quick a busy machine is.
fn settings(url: &str) -> [(&str, &str); 3] {
    with_secret(url, SECRET)
}

fn with_secret<'a>(url: &'a str, secret: &'a str) -> [(&'a str, &'a str); 3] {
    [("KEYSTILE_REDIS_URL", url), ("KEYSTILE_CACHE_SECRET", secret), ("KEYSTILE_REDIS_TIMEOUT", "2s")]
}

/// What an instance has asked of the others so far.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    database: u64,
    bcrypt: u64,
    odd: u64,
}

async fn asked(fleet: &Fleet, instance: usize) -> Asked {
    let metrics = fleet.instances[instance].setup.metrics().await;
    let sum = |name: &str| -> u64 {
        let lines = metrics.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
    };
    Asked {
        database: sum("keystile_store_duration_seconds_count{store=\"postgres\",operation=\"records\"}"),
        bcrypt: sum("keystile_bcrypt_duration_seconds_count"),
        odd: sum("keystile_cache_lookups_total{tier=\"redis\",kind=\"records\",result=\"odd\"}")
            + sum("keystile_cache_lookups_total{tier=\"redis\",kind=\"proofs\",result=\"odd\"}"),
    }
}

/// Waits until both entries of a key stand in Redis. What was read before the instance heard of the new key is not
/// shared, so it is asked again.
async fn until_shared(fleet: &Fleet, redis: &Redis, key: &Key) {
    let prefix = &key.credential[..8];
    until("the key is shared", 5 * SECOND, async || {
        fleet.status(0, key).await;
        redis.keys(&format!("keystile:{{{prefix}}}:*")).iter().filter(|name| !name.is_empty()).count() == 2
    })
    .await;
}

fn name(key: &Key, kind: &str) -> String {
    format!("keystile:{{{}}}:{kind}", &key.credential[..8])
}

#[tokio::test(flavor = "multi_thread")]
async fn each_instance_follows_its_own_setting_of_account_locks() {
    let redis = Redis::start();
    let url = redis.url();
    let with_lock = |setting| [&settings(&url)[..], &[("KEYSTILE_ACCOUNT_LOCK", setting)]].concat();
    let mut fleet = Fleet::start(1, &with_lock("ignore")).await;
    let key = fleet.key(&[]);
    fleet.schema.execute("UPDATE users SET account_locked = true").await;
    until_shared(&fleet, &redis, &key).await;
    assert_eq!(fleet.status(0, &key).await, 200);
    for (instance, setting, expected) in [(1, "deny", 401), (2, "ignore", 200)] {
        fleet.add(&fleet.schema.url(), &with_lock(setting)).await;
        let answer = ask(&fleet.channels[instance], &key.credential).await;
        assert_eq!(status(&answer), expected, "{setting}");
        assert!(format!("{answer:?}").contains("\"redis\""), "the record is from Redis: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn second_instance_asks_neither_bcrypt_nor_postgres() {
    let redis = Redis::start();
    let url = redis.url();
    let mut fleet = Fleet::start(1, &settings(&url)).await;
    let key = fleet.key(&[]);
    assert_eq!(fleet.status(0, &key).await, 200);
    until_shared(&fleet, &redis, &key).await;
    fleet.add(&fleet.schema.url(), &settings(&url)).await;
    let answer = ask(&fleet.channels[1], &key.credential).await;
    assert_eq!(status(&answer), 200);
    assert!(format!("{answer:?}").contains("\"redis\""), "the tier is told: {answer:?}");
    assert_eq!(asked(&fleet, 1).await, Asked { database: 0, bcrypt: 0, odd: 0 });
    // A wrong secret for it is still proven wrong by bcrypt, for which the hash is read.
    let wrong = format!("{}x", key.credential);
    assert_eq!(status(&ask(&fleet.channels[1], &wrong).await), 401);
    assert_eq!(asked(&fleet, 1).await, Asked { database: 1, bcrypt: 1, odd: 0 });
}

/// The record in Redis suffices: its hash is keyed with the cache secret, and compared at once.
#[tokio::test(flavor = "multi_thread")]
async fn second_instance_proves_a_sha256_key_from_redis_alone() {
    let redis = Redis::start();
    let url = redis.url();
    let mut fleet = Fleet::start(1, &settings(&url)).await;
    let key = fleet.key(&[]);
    let credential = keystile::credential::Credential::parse(key.credential.as_bytes()).unwrap();
    let hash = keystile::record::Sha256Hash::of(&credential).expose();
    fleet.schema.execute(&format!("UPDATE api_keys SET key_hash = '{hash}'")).await;
    let records = name(&key, "records");
    until("the record is shared", 5 * SECOND, async || {
        fleet.status(0, &key).await;
        redis.command(&["EXISTS", &records]) == "1"
    })
    .await;
    assert_eq!(redis.command(&["EXISTS", &name(&key, "proofs")]), "0", "there is nothing to share");
    let dump = redis.dump();
    for hidden in [&hash[8..], &key.credential[8..]] {
        assert!(!dump.contains(hidden), "{hidden} is in Redis:\n{dump}");
    }
    fleet.add(&fleet.schema.url(), &settings(&url)).await;
    let answer = ask(&fleet.channels[1], &key.credential).await;
    assert_eq!(status(&answer), 200);
    assert!(format!("{answer:?}").contains("\"redis\""), "the tier is told: {answer:?}");
    let wrong = format!("{}x", key.credential);
    assert_eq!(status(&ask(&fleet.channels[1], &wrong).await), 401);
    assert_eq!(asked(&fleet, 1).await, Asked { database: 0, bcrypt: 0, odd: 0 });
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_holds_no_credential_and_no_hash() {
    let redis = Redis::start();
    let url = redis.url();
    let fleet = Fleet::start(1, &settings(&url)).await;
    let key = fleet.key(&[]);
    let wrong = format!("{}x", key.credential);
    assert_eq!(fleet.status(0, &key).await, 200);
    assert_eq!(status(&ask(&fleet.channels[0], &wrong).await), 401);
    assert_eq!(status(&ask(&fleet.channels[0], "zz_nobodysKey").await), 401);
    until_shared(&fleet, &redis, &key).await;
    let hash = fleet.schema.value("SELECT key_hash FROM api_keys").await.unwrap();
    let dump = redis.dump();
    assert!(dump.contains("ada@example.com"), "the record is there:\n{dump}");
    for hidden in
        [&key.credential, &key.credential[8..], &wrong, &hash, &hash[7..29], &hash[29..], SECRET, "zz_nobod"]
    {
        assert!(!dump.contains(hidden), "{hidden} is in Redis:\n{dump}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_tampered_with_is_believed() {
    let redis = Redis::start();
    let url = redis.url();
    let mut fleet = Fleet::start(1, &settings(&url)).await;
    let (key, restricted) = (fleet.key(&[]), fleet.key(&["--allowed-ip", "10.0.0.1"]));
    assert_eq!((fleet.status(0, &key).await, fleet.status(0, &restricted).await), (200, 403));
    until_shared(&fleet, &redis, &key).await;
    until_shared(&fleet, &redis, &restricted).await;
    let (records, proofs) = (name(&restricted, "records"), name(&restricted, "proofs"));
    let good = redis.command(&["GET", &records]);
    let of_another = redis.command(&["GET", &name(&key, "records")]);
    let tamperings: [&[&str]; 8] = [
        &["SET", &records, &good.replace("10.0.0.1", "10.0.0.2")],
        &["SET", &records, &good[..good.len() / 2]],
        &["SET", &records, &of_another],
        &["SET", &records, ""],
        &["SET", &records, "2.AAAA.{}"],
        &["LPUSH", &records, &good],
        &["LPUSH", &proofs, &good],
        &["APPEND", &proofs, &format!("not-a-digest {good}\n")],
    ];
    for (n, tampering) in tamperings.iter().enumerate() {
        redis.command(&["SET", &records, &good]);
        redis.command(&["DEL", if tampering[1] == records { &records } else { &proofs }]);
        redis.command(tampering);
        fleet.add(&fleet.schema.url(), &settings(&url)).await;
        let last = fleet.channels.len() - 1;
        assert_eq!(fleet.status(last, &restricted).await, 403, "tampering {n}");
        // An empty value is to Redis what a missing one is.
        let is_counted = asked(&fleet, last).await.odd >= 1 || tampering.last() == Some(&"");
        assert!(is_counted, "tampering {n} is counted");
        until_shared(&fleet, &redis, &restricted).await;
        until("it is mended", 5 * SECOND, async || {
            redis.command(&["TYPE", &proofs]) == "string" && redis.command(&["TYPE", &records]) == "string"
        })
        .await;
        fleet.instances.pop();
        fleet.channels.pop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entry_that_is_brought_back_after_a_revocation_is_not_believed() {
    let redis = Redis::start();
    let url = redis.url();
    let mut fleet = Fleet::start(1, &settings(&url)).await;
    let key = fleet.key(&[]);
    assert_eq!(fleet.status(0, &key).await, 200);
    until_shared(&fleet, &redis, &key).await;
    let old = redis.command(&["GET", &name(&key, "records")]);
    fleet.after("UPDATE api_keys SET is_active = false", &key, 401).await;
    until("the revoked record is shared", 5 * SECOND, async || {
        redis.command(&["GET", &name(&key, "records")]) != old
    })
    .await;
    redis.command(&["SET", &name(&key, "records"), &old]);
    // To one that has the record in memory, to one that reads it again, and to one that has just started.
    assert_eq!(fleet.status(0, &key).await, 401);
    fleet.run(&["invalidate", &key.credential[..8]]).done();
    redis.command(&["SET", &name(&key, "records"), &old]);
    assert_eq!(fleet.status(0, &key).await, 401);
    redis.command(&["SET", &name(&key, "records"), &old]);
    fleet.add(&fleet.schema.url(), &settings(&url)).await;
    assert_eq!(fleet.status(1, &key).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn change_while_no_instance_ran_counts_at_the_next_start() {
    let redis = Redis::start();
    let url = redis.url();
    let mut fleet = Fleet::start(1, &settings(&url)).await;
    let key = fleet.key(&[]);
    assert_eq!(fleet.status(0, &key).await, 200);
    until_shared(&fleet, &redis, &key).await;
    fleet.instances.clear();
    fleet.channels.clear();
    fleet.schema.execute("UPDATE api_keys SET is_active = false").await;
    fleet.add(&fleet.schema.url(), &settings(&url)).await;
    assert_eq!(fleet.status(0, &key).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_that_was_under_way_during_a_revocation_lands_nowhere() {
    let redis = Redis::start();
    let url = redis.url();
    let schema = Schema::create().await;
    let server = postgres::server().address();
    let proxy = Proxy::before(server).await;
    let by_way = proxy.url(&schema.url(), server);
    // It hears of changes past the wire that is slow.
    let feed = schema.url();
    let slow =
        [&settings(&url)[..], &[("KEYSTILE_CHANGE_FEED_URL", &feed), ("KEYSTILE_DATABASE_TIMEOUT", "5s")]]
            .concat();
    let mut fleet = Fleet::on(schema, &by_way, 1, &slow).await;
    fleet.add(&fleet.schema.url(), &settings(&url)).await;
    let key = fleet.key(&["--cost", "4"]);
    proxy.set(Wire::Slow(2 * SECOND));
    let under_way = tokio::spawn({
        let (channel, credential) = (fleet.channels[0].clone(), key.credential.clone());
        async move { status(&ask(&channel, &credential).await) }
    });
    tokio::time::sleep(SECOND / 2).await;
    fleet.schema.execute("UPDATE api_keys SET is_active = false").await;
    under_way.await.unwrap();
    proxy.mend();
    until("what was read before is believed nowhere", 2 * SECOND, async || {
        fleet.status(0, &key).await == 401 && fleet.status(1, &key).await == 401
    })
    .await;
    let stays = async || {
        for _ in 0..20 {
            fleet.expect(&key, 401).await;
            tokio::time::sleep(SECOND / 20).await;
        }
    };
    stays().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secret_is_rotated_without_a_gap() {
    let redis = Redis::start();
    let url = redis.url();
    let mut fleet = Fleet::start(1, &settings(&url)).await;
    let key = fleet.key(&[]);
    assert_eq!(fleet.status(0, &key).await, 200);
    until_shared(&fleet, &redis, &key).await;
    let both = format!("{OTHER},{SECRET}");
    fleet.add(&fleet.schema.url(), &with_secret(&url, &both)).await;
    assert_eq!(fleet.status(1, &key).await, 200);
    assert_eq!(asked(&fleet, 1).await, Asked { database: 0, bcrypt: 0, odd: 0 });
    // To whoever has the new one alone, what was sealed under the old one is nothing.
    fleet.add(&fleet.schema.url(), &with_secret(&url, OTHER)).await;
    assert_eq!(fleet.status(2, &key).await, 200);
    assert_eq!(asked(&fleet, 2).await, Asked { database: 1, bcrypt: 1, odd: 1 });
}

/// The tier of one instance, on a database that has no log of changes: age alone counts.
fn tier(place: &Place, redis: &Redis) -> RedisTier<Database> {
    let client =
        keystile::redis::Redis::connect(&redis.url().parse().unwrap(), 2 * SECOND, &place.metrics).unwrap();
    let config = RedisTierConfig {
        record_ttl: 300 * SECOND,
        proof_ttl: 300 * SECOND,
        account_lock: AccountLock::Deny,
    };
    let secrets = CacheSecrets::new([CacheSecret::new(SECRET.as_bytes())]).unwrap();
    RedisTier::new(
        place.database(),
        client,
        secrets,
        config,
        Arc::new(Fence::new(Instant::now())),
        &place.metrics,
    )
}

/// Now, by a clock that is wrong by so many seconds.
fn now(seconds: i64) -> Timestamps {
    let now = Timestamps::now();
    Timestamps { wall: now.wall + time::Duration::seconds(seconds), ..now }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_clock_of_an_instance_makes_an_entry_younger() {
    for (writer, reader) in [(0, 0), (60, 0), (0, -60), (59, -59), (3600, 0), (0, -86_400), (-60, 0), (0, 20)]
    {
        let (place, redis) = (Place::sqlite_older().await, Redis::start());
        place.user().await;
        place.key("7", &[]).await;
        let (one, other) = (tier(&place, &redis), tier(&place, &redis));
        let read = async |tier: &RedisTier<Database>, seconds| {
            let found = tier.records(prefix(), now(seconds)).await.expect("answers");
            (found.tier, found.age)
        };
        until("it is shared", 5 * SECOND, async || {
            read(&one, writer).await;
            !redis.keys("keystile:{*").concat().is_empty()
        })
        .await;
        tokio::time::sleep(2 * SECOND).await;
        let (tier, age) = read(&other, reader).await;
        let what = format!("written {writer} s, read {reader} s off: {tier:?}, {age:?}");
        // What is older than it should be is read from the database, and no harm done.
        let seems_old = reader - writer > 25;
        assert!(tier == Tier::Database && seems_old || tier == Tier::Redis && age >= 2 * SECOND, "{what}");
        assert!(age < 30 * SECOND, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_without_a_secret_is_warned_about() {
    let redis = Redis::start();
    let fleet = Fleet::start(1, &[("KEYSTILE_REDIS_URL", &redis.url())]).await;
    assert!(
        fleet.instances[0].setup.log().contains("no --cache-secret"),
        "{}",
        fleet.instances[0].setup.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_needs_no_bcrypt_where_redis_remembers() {
    let redis = Redis::start();
    let url = redis.url();
    let mut fleet = Fleet::start(1, &settings(&url)).await;
    let keys: Vec<_> = (0..5).map(|_| fleet.key(&["--cost", "10"])).collect();
    for key in &keys {
        assert_eq!(fleet.status(0, key).await, 200);
        until_shared(&fleet, &redis, key).await;
    }
    fleet.instances.clear();
    fleet.channels.clear();
    fleet.add(&fleet.schema.url(), &settings(&url)).await;
    for key in &keys {
        assert_eq!(fleet.status(0, key).await, 200);
    }
    assert_eq!(asked(&fleet, 0).await, Asked { database: 0, bcrypt: 0, odd: 0 });
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_tell_of_every_part() {
    let redis = Redis::start();
    let url = redis.url();
    let fleet = Fleet::start(1, &settings(&url)).await;
    let key = fleet.key(&[]);
    for _ in 0..4 {
        assert_eq!(fleet.status(0, &key).await, 200);
    }
    let stats = fleet.instances[0].setup.stats().await;
    assert_eq!(stats["enabled"], true);
    // A second time, where the instance hears of the new key just after it was first asked about it.
    let misses = stats["misses"].as_u64().expect("a number");
    assert!((1..=2).contains(&misses), "{stats}");
    assert_eq!(stats["hits"], 4 - misses);
    assert_eq!(stats["hit_rate"].as_f64(), Some((4 - misses) as f64 / 4.0));
    let below = &stats["tiers"]["redis"]["records"];
    assert_eq!(below["hits"].as_u64().zip(below["misses"].as_u64()).map(|(a, b)| a + b), Some(misses));
    assert_eq!(stats["entries"]["records"], 1);
    assert!(
        stats["redis"]["memory_bytes"].as_u64() > Some(0) && stats["redis"]["clients"].as_u64() > Some(0),
        "{stats}"
    );
    assert_eq!((&stats["database"]["store"], &stats["database"]["up"]), (&"postgres".into(), &true.into()));
    assert_eq!(stats["change_feed"]["source"], "log");
}
