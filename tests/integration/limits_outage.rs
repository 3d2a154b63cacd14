//! Redis is killed, flushed and failed over while three instances count in it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use envoy_types::{ext_authz::v3::pb::CheckResponse, pb::google::protobuf::value};
use keystile::{
    config::RateLimitOnLoss,
    limiter::{RedisLimiterConfig, Refusal},
    limits::LimitScope,
};
use rustix::process::Signal;

use crate::harness::{
    client::{ask, channel, code, status},
    limits::{EXACT, Instance, LEASED, burst, charge, passed, seconds_left},
    process::free_port,
    redis::Redis,
    service::{Key, Keystile, Setup},
    until,
};

const TIMEOUT: Duration = Duration::from_millis(200);

async fn three(url: &str, config: RedisLimiterConfig) -> Arc<[Instance]> {
    Instance::fleet(url, config, 3, TIMEOUT).await
}

fn used(redis: &Redis, id: i64, span: &str) -> usize {
    redis.command(&["HGET", &format!("keystile:{{{id}}}:limit:{span}"), "used"]).parse().unwrap_or(0)
}

/// Waits until all of them count in Redis.
async fn counted_by_redis(fleet: &[Instance]) {
    until("Redis counts again", Duration::from_secs(15), async || {
        for instance in fleet {
            let status = instance.charge(charge(999, Some(1_000_000), None)).await;
            if status.map(|status| status.counted) != Ok(LimitScope::Redis) {
                return false;
            }
        }
        true
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_goes_on_with_its_part_while_redis_is_lost_and_tells_it_later() {
    for config in [EXACT, LEASED] {
        let mut redis = Redis::start();
        let fleet = three(&redis.url(), config).await;
        redis.kill();
        let results = burst(&fleet, charge(1, None, Some(100)), 600).await;
        assert_eq!(passed(&results), 100, "{config:?}");
        for result in results.into_iter().flatten() {
            assert_eq!(result.counted, LimitScope::Divided);
        }
        let divided: Vec<_> = fleet.iter().map(|instance| instance.counted("divided")).collect();
        assert_eq!(divided.iter().sum::<u64>(), 100, "{divided:?}");
        assert!(divided.iter().all(|count| (33..=34).contains(count)), "{divided:?}");
        redis.revive();
        // The first instance does not get use that the others have not reported yet.
        let mut more = 0;
        until("Redis counts again", Duration::from_secs(15), async || {
            let results = burst(&fleet, charge(1, None, Some(100)), 30).await;
            more += passed(&results);
            let by_redis = |result: &Result<_, Refusal>| match result {
                Err(Refusal::Limited(status)) => status.counted == LimitScope::Redis,
                _ => false,
            };
            results.iter().all(by_redis)
        })
        .await;
        assert_eq!((more, used(&redis, 1, "day")), (0, 100), "{config:?}");
        assert_eq!(passed(&burst(&fleet, charge(1, None, Some(150)), 300).await), 50, "{config:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_no_guesses_denies_while_redis_is_lost() {
    let mut redis = Redis::start();
    let config = RedisLimiterConfig { on_loss: RateLimitOnLoss::Deny, ..LEASED };
    let fleet = three(&redis.url(), config).await;
    redis.kill();
    let results = burst(&fleet, charge(1, Some(100), None), 30).await;
    assert!(results.iter().all(|result| *result == Err(Refusal::Unavailable)), "{results:?}");
    assert_eq!(fleet.iter().map(|instance| instance.counted("unavailable")).sum::<u64>(), 30);
    redis.revive();
    counted_by_redis(&fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_heard_of_the_others_does_not_guess_its_part() {
    let instance = Instance::start(&format!("redis://127.0.0.1:{}", free_port()), LEASED, TIMEOUT);
    assert_eq!(instance.charge(charge(1, Some(100), None)).await, Err(Refusal::Unavailable));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_flush_forgot_is_put_back() {
    for config in [EXACT, LEASED] {
        let redis = Redis::start();
        let fleet = three(&redis.url(), config).await;
        seconds_left(20).await;
        let charge = charge(1, Some(1_000), Some(100));
        assert_eq!(passed(&burst(&fleet, charge, 60).await), 60);
        redis.command(&["FLUSHALL"]);
        until("Redis is told", Duration::from_secs(5), async || used(&redis, 1, "day") >= 60).await;
        counted_by_redis(&fleet).await;
        until("all shares are used or given back", Duration::from_secs(15), async || {
            burst(&fleet, charge, 60).await;
            used(&redis, 1, "day") == 100
        })
        .await;
        let all: u64 = fleet
            .iter()
            .map(|instance| ["allowed", "leased", "divided"].map(|result| instance.counted(result)))
            .map(|counts| counts.iter().sum::<u64>())
            .sum();
        let others = fleet.iter().map(|instance| instance.counted("limited")).sum::<u64>();
        assert!(others > 0);
        // In addition to the hundred: the requests of `counted_by_redis`.
        let probes = used(&redis, 999, "minute") as u64;
        assert!(all <= 100 + probes.max(3) * 2, "{all} with {probes} probes, {config:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn promoted_replica_goes_on_where_the_lost_server_was() {
    let mut old = Redis::start();
    let new = Redis::with(&[&format!("replicaof 127.0.0.1 {}", old.address().port())]);
    let sentinel = Redis::sentinel(&old);
    until("the sentinel knows both", Duration::from_secs(30), async || {
        sentinel.command(&["INFO", "sentinel"]).contains("slaves=1")
            && new.command(&["INFO", "replication"]).contains("master_link_status:up")
    })
    .await;
    let url = format!("redis-sentinel://{}?sentinelServiceName=main", sentinel.address());
    // Found again under load, too.
    let fleet = Instance::fleet(&url, LEASED, 3, Duration::from_secs(1)).await;
    let charge = charge(1, None, Some(100));
    assert_eq!(passed(&burst(&fleet, charge, 50).await), 50);
    until("it is replicated", Duration::from_secs(5), async || used(&new, 1, "day") >= 50).await;
    old.kill();
    // Until the sentinel has promoted it, each instance continues with its part.
    let mut later = passed(&burst(&fleet, charge, 6).await);
    until("the replica is promoted", Duration::from_secs(30), async || {
        later += passed(&burst(&fleet, charge, 3).await);
        new.command(&["INFO", "replication"]).contains("role:master")
    })
    .await;
    until("it counts, and has been told all that passed", Duration::from_secs(60), async || {
        let results = burst(&fleet, charge, 30).await;
        later += passed(&results);
        let by_redis = |result: &Result<_, Refusal>| match result {
            Err(Refusal::Limited(status)) => status.counted == LimitScope::Redis,
            _ => false,
        };
        results.iter().all(by_redis) && used(&new, 1, "day") == 50 + later
    })
    .await;
    // Who lost it alone let its part through, which the others did not know of.
    let divided: u64 = fleet.iter().map(|instance| instance.counted("divided")).sum();
    assert!((100..=100 + divided as usize).contains(&(50 + later)), "{later} and {divided}");
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_that_redis_evicts_are_put_back() {
    let redis = Redis::with(&["maxmemory 3mb", "maxmemory-policy allkeys-lru"]);
    let fleet = three(&redis.url(), LEASED).await;
    seconds_left(20).await;
    let charge = charge(1, Some(1_000), Some(100));
    assert_eq!(passed(&burst(&fleet, charge, 60).await), 60);
    let filling =
        "for i = 1, 2000 do redis.call('SET', 'other:' .. ARGV[1] .. ':' .. i, string.rep('x', 1000)) end";
    let mut round = 0;
    until("it is evicted", Duration::from_secs(10), async || {
        round += 1;
        redis.command(&["EVAL", filling, "0", &round.to_string()]);
        redis.command(&["EXISTS", "keystile:{1}:limit:day"]) == "0"
    })
    .await;
    // At its bound it would lose again, with any write, what was put back.
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    let mut more = 0;
    for _ in 0..20 {
        more += passed(&burst(&fleet, charge, 30).await);
    }
    // An instance that had no answer in time while Redis was filled lets its part through, unknown to the others.
    let alone = fleet.iter().filter(|instance| instance.counted("divided") > 0).count();
    assert!(60 + more <= 100 + 3 + 34 * alone, "{more} more, {alone} alone");
}

/// A Keystile that counts in Redis, and a key with a hundred a day.
async fn keystile(redis: &Redis, settings: &[(&str, &str)]) -> (Keystile, Key) {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &["--rate-limit-per-day", "100"]);
    let url = redis.url();
    let base =
        [("KEYSTILE_RATE_LIMIT", "redis"), ("KEYSTILE_REDIS_URL", &url), ("KEYSTILE_REDIS_TIMEOUT", "200ms")];
    (setup.start(&[&base[..], settings].concat()).await, key)
}

/// By whom the limits were counted, as Envoy's access log can show it.
fn counted(answer: &CheckResponse) -> Option<String> {
    let fields = &answer.dynamic_metadata.as_ref().unwrap().fields;
    match &fields.get("rate_limit_counted")?.kind {
        Some(value::Kind::StringValue(text)) => Some(text.clone()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outage_is_told_in_metadata_metrics_and_log() {
    let mut redis = Redis::start();
    let (keystile, key) = keystile(&redis, &[]).await;
    let channel = channel(keystile.setup.tcp).await;
    until("Redis counts", Duration::from_secs(10), async || {
        counted(&ask(&channel, &key.credential).await).as_deref() == Some("redis")
    })
    .await;
    // Until it has heard that it is alone, it knows no part of its own.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    redis.kill();
    until("it continues alone", Duration::from_secs(10), async || {
        let answer = ask(&channel, &key.credential).await;
        assert_eq!(status(&answer), 200);
        counted(&answer).as_deref() == Some("divided")
    })
    .await;
    assert!(keystile.setup.metrics().await.contains("keystile_rate_limit_total{result=\"divided\"} "));
    assert_eq!(keystile.setup.log().matches("rate limits are no longer counted by Redis").count(), 1);
    redis.revive();
    until("Redis counts again", Duration::from_secs(15), async || {
        counted(&ask(&channel, &key.credential).await).as_deref() == Some("redis")
    })
    .await;
    assert!(keystile.setup.log().contains("rate limits are counted by Redis"));
}

#[tokio::test(flavor = "multi_thread")]
async fn key_that_nobody_counts_is_denied_and_not_left_to_envoy() {
    let mut redis = Redis::start();
    let settings = [("KEYSTILE_RATE_LIMIT_ON_LOSS", "deny"), ("KEYSTILE_ON_FAILURE", "defer")];
    let (keystile, key) = keystile(&redis, &settings).await;
    let free = keystile.setup.create_key("ada", &[]);
    redis.kill();
    let channel = channel(keystile.setup.tcp).await;
    let answer = ask(&channel, &key.credential).await;
    assert_eq!((status(&answer), code(&answer).as_deref()), (503, Some("unavailable")));
    assert_eq!(status(&ask(&channel, &free.credential).await), 200, "no limits, nothing to count");
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_lost_and_back_in_the_middle_of_traffic_is_told_all_that_passed() {
    for config in [EXACT, LEASED] {
        let mut redis = Redis::start();
        let fleet = three(&redis.url(), config).await;
        let charge = charge(1, Some(1_000_000), Some(1_000_000));
        let mut total = 0;
        let begun = Instant::now();
        let mut is_lost = false;
        while begun.elapsed() < Duration::from_secs(6) {
            let lost = (2..4).contains(&begun.elapsed().as_secs());
            match (is_lost, lost) {
                (false, true) => redis.kill(),
                (true, false) => redis.revive(),
                _ => {}
            }
            is_lost = lost;
            total += passed(&burst(&fleet, charge, 30).await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let divided: u64 = fleet.iter().map(|instance| instance.counted("divided")).sum();
        assert!(divided > 100, "{divided} while Redis was lost");
        counted_by_redis(&fleet).await;
        until("Redis knows all that passed, and no more", Duration::from_secs(10), async || {
            used(&redis, 1, "day") == total
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn process_that_is_told_to_stop_gives_back_its_shares() {
    let redis = Redis::start();
    let (mut keystile, key) = keystile(&redis, &[]).await;
    let busy = keystile.setup.create_key("ada", &["--rate-limit-per-day", "100000"]);
    let channel = channel(keystile.setup.tcp).await;
    assert_eq!(status(&ask(&channel, &key.credential).await), 200);
    let mut taken = 0;
    for asked in 1.. {
        assert_eq!(status(&ask(&channel, &busy.credential).await), 200);
        taken = used(&redis, busy.id, "day");
        if taken > asked + 10 {
            assert!(keystile.process.wait(Duration::ZERO).is_none());
            keystile.process.signal(Signal::TERM);
            assert_eq!(keystile.process.wait(Duration::from_secs(10)), Some(0));
            assert_eq!(used(&redis, busy.id, "day"), asked);
            break;
        }
    }
    assert!(taken > 10);
    assert_eq!(redis.command(&["ZCARD", "keystile:sidecars"]), "0");
}
