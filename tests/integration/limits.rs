//! Three instances count in one Redis. Together they allow exactly the limit.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use keystile::{
    clock::Timestamps,
    limiter::{RateLimiter, RedisLimiterConfig, Refusal},
    limits::LimitScope,
};

use crate::harness::{
    limits::{EXACT, Instance, LEASED, burst, charge, passed, seconds_left},
    redis::Redis,
    until,
};

async fn three(redis: &Redis, config: RedisLimiterConfig) -> Arc<[Instance]> {
    Instance::fleet(&redis.url(), config, 3, Duration::from_secs(2)).await
}

/// What Redis has charged for a key in the present minute.
fn used(redis: &Redis, id: i64, span: &str) -> usize {
    redis.command(&["HGET", &format!("keystile:{{{id}}}:limit:{span}"), "used"]).parse().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_the_limit_passes_of_a_thousand_at_once() {
    let redis = Redis::start();
    for (config, id) in [(EXACT, 1), (LEASED, 2)] {
        let fleet = three(&redis, config).await;
        seconds_left(10).await;
        let results = burst(&fleet, charge(id, Some(100), None), 1_000).await;
        assert_eq!(passed(&results), 100, "{config:?}");
        assert_eq!(used(&redis, id, "minute"), 100, "{config:?}");
        let refused = results.into_iter().filter_map(Result::err);
        for refusal in refused {
            let Refusal::Limited(status) = refusal else { panic!("{refusal:?}") };
            let left = status.windows[0].unwrap();
            assert_eq!((left.limit, left.remaining, status.counted), (100, 0, LimitScope::Redis));
            let back = status.retry_after(1);
            let second = u64::from(Timestamps::now().wall.second());
            assert!(back.as_secs() >= 59 - second && back.as_secs() <= 60, "{back:?} at {second}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_windows_are_charged_or_none() {
    let redis = Redis::start();
    for (config, id) in [(EXACT, 1), (LEASED, 2)] {
        let fleet = three(&redis, config).await;
        seconds_left(10).await;
        // The day is full before the minute.
        assert_eq!(passed(&burst(&fleet, charge(id, Some(50), Some(20)), 200).await), 20);
        assert_eq!((used(&redis, id, "minute"), used(&redis, id, "day")), (20, 20));
        // What costs more than is left is charged nothing, and leaves it to what costs less.
        let costly =
            keystile::limits::Charge { cost: 7.try_into().unwrap(), ..charge(id + 10, Some(20), None) };
        assert_eq!(passed(&burst(&fleet, costly, 100).await), 2);
        assert_eq!(used(&redis, id + 10, "minute"), 14);
        until("the rest is there for others", Duration::from_secs(3), async || {
            passed(&burst(&fleet, charge(id + 10, Some(20), None), 50).await);
            used(&redis, id + 10, "minute") == 20
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limit_of_zero_lets_nothing_through_and_asks_nobody() {
    let redis = Redis::start();
    let fleet = three(&redis, LEASED).await;
    for result in burst(&fleet, charge(1, Some(0), Some(100)), 10).await {
        let Err(Refusal::Limited(status)) = result else { panic!("{result:?}") };
        assert!(status.retry_after(1) > Duration::ZERO);
    }
    for instance in &*fleet {
        let none = r#"keystile_store_duration_seconds_count{store="redis",operation="charge"} 0"#;
        assert!(instance.metrics.render().contains(none));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_window_has_its_own_limit_over_the_edge() {
    let redis = Redis::start();
    let (exact, leased) = (three(&redis, EXACT).await, three(&redis, LEASED).await);
    // Over the edge with hundreds of callers, who never stop asking.
    until("the minute is about to end", Duration::from_secs(61), async || {
        (57..58).contains(&Timestamps::now().wall.second())
    })
    .await;
    tokio::join!(over_the_edge(&exact, 1), over_the_edge(&leased, 2));
}

async fn over_the_edge(fleet: &Arc<[Instance]>, id: i64) {
    let (mut before, mut after, begun) = (0, 0, Instant::now());
    while begun.elapsed() < Duration::from_secs(5) {
        for result in burst(fleet, charge(id, Some(60), None), 300).await {
            let Ok(status) = result else { continue };
            if status.windows[0].unwrap().reset < Duration::from_secs(30) {
                before += 1;
            } else {
                after += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((before, after), (60, 60), "key {id}");
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_key_makes_few_round_trips_and_what_it_does_not_use_is_given_back() {
    let redis = Redis::start();
    let fleet = three(&redis, LEASED).await;
    seconds_left(20).await;
    let charge = charge(1, Some(100_000), None);
    for _ in 0..100 {
        assert_eq!(passed(&burst(&fleet, charge, 90).await), 90);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let leased: u64 = fleet.iter().map(|instance| instance.counted("leased")).sum();
    assert!(leased > 8_000, "{leased} of 9000 without a round trip");
    let share = used(&redis, 1, "minute") - 9_000;
    // Documented: about a second's worth at each instance, and less than half of the remainder.
    assert!(share < 27_000, "{share} taken ahead");
    // Each script was sent once or twice by each, and from then on named.
    let stats = redis.command(&["INFO", "commandstats"]);
    let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_eval:calls=")).unwrap();
    assert!(line.split(',').next().unwrap().parse::<u32>().unwrap() <= 12, "{line}");
    until("it is given back", Duration::from_secs(5), async || used(&redis, 1, "minute") == 9_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn instance_that_leaves_returns_its_leases_at_once() {
    let redis = Redis::start();
    let fleet = three(&redis, LEASED).await;
    seconds_left(10).await;
    for _ in 0..10 {
        burst(&fleet, charge(1, Some(100_000), Some(1_000_000)), 60).await;
    }
    assert!(used(&redis, 1, "day") > 600);
    for instance in &*fleet {
        instance.limiter.leave().await;
    }
    assert_eq!((used(&redis, 1, "minute"), used(&redis, 1, "day")), (600, 600));
}

#[tokio::test(flavor = "multi_thread")]
async fn caller_that_leaves_costs_nothing_but_its_turn() {
    let redis = Redis::start();
    let fleet = three(&redis, LEASED).await;
    seconds_left(10).await;
    let mut took = 0;
    for _ in 0..20 {
        let charge = fleet[0].limiter.charge(charge(1, Some(100), None));
        took += usize::from(tokio::time::timeout(Duration::ZERO, charge).await.is_ok());
    }
    let all_back = async || used(&redis, 1, "minute") == took;
    until("the rest is given back", Duration::from_secs(5), all_back).await;
    assert_eq!(took + passed(&burst(&fleet, charge(1, Some(100), None), 300).await), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_of_a_key_stay_together_in_a_cluster() {
    let nodes = Redis::cluster();
    let url = format!("redis-cluster://{}?node={}", nodes[0].address(), nodes[1].address());
    let fleet = Instance::fleet(&url, LEASED, 3, Duration::from_secs(2)).await;
    // Keys in many slots, with three windows each.
    for id in 1..20 {
        let mut charge = charge(id, Some(100), Some(20));
        charge.limits.hour = Some(50);
        let results = burst(&fleet, charge, 60).await;
        assert_eq!(passed(&results), 20);
        assert!(results.iter().flatten().all(|status| status.counted == LimitScope::Redis));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_wrote_in_their_place_stops_no_counting() {
    let redis = Redis::start();
    redis.command(&["SET", "keystile:sidecars", "x"]);
    redis.command(&["SET", "keystile:{1}:limit:day", "x"]);
    redis.command(&["HSET", "keystile:{2}:limit:day", "number", "x", "used", "y"]);
    let today = (Timestamps::now().wall.unix_timestamp() / 86_400).to_string();
    redis.command(&["HSET", "keystile:{3}:limit:day", "number", &today, "used", "y"]);
    let fleet = three(&redis, LEASED).await;
    for id in 1..4 {
        assert_eq!(passed(&burst(&fleet, charge(id, None, Some(20)), 60).await), 20);
        assert_eq!(used(&redis, id, "day"), 20);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_documented_are_enough() {
    let page = include_str!("../../docs/guides/redis.md");
    let rights = |line: &&str| line.starts_with("user keystile") || line.starts_with("+eval");
    let user = page.lines().filter(rights).collect::<Vec<_>>().join(" ").replace("PASSWORD", "secret");
    assert!(user.contains("+evalsha") && user.contains("~keystile:*"), "{user}");
    let redis = Redis::with(&[&user]);
    let url = format!("redis://keystile:secret@{}", redis.address());
    let fleet = Instance::fleet(&url, LEASED, 2, Duration::from_secs(2)).await;
    assert_eq!(passed(&burst(&fleet, charge(1, Some(1_000), Some(20)), 60).await), 20);
    assert_eq!(used(&redis, 1, "day"), 20);
    fleet[0].limiter.leave().await;
    assert_eq!(redis.command(&["ZCARD", "keystile:sidecars"]), "1");
}
