//! Values in Redis that somebody made huge cost no memory.

use std::time::Duration;

use crate::harness::{fleet::Fleet, redis::Redis, until};

const SECOND: Duration = Duration::from_secs(1);
const MIB: usize = 1 << 20;
const SECRET: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210";

/// The most memory that a process has had at one time, in bytes.
fn peak_memory(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    peak.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_value_is_not_read() {
    let redis = Redis::start();
    let url = redis.url();
    let settings = [("KEYSTILE_REDIS_URL", url.as_str()), ("KEYSTILE_REDIS_TIMEOUT", "10s")];
    let fleet = Fleet::start(1, &settings).await;
    let huge = (300 * MIB).to_string();
    for (kind, make) in [("records", "string"), ("proofs", "string"), ("proofs", "hash")] {
        let key = fleet.key(&[]);
        let name = format!("keystile:{{{}}}:{kind}", &key.credential[..8]);
        if make == "string" {
            redis.command(&["SETRANGE", &name, &huge, "x"]);
        } else {
            redis.command(&[
                "EVAL",
                "redis.call('HSET', KEYS[1], 'f', string.rep('x', ARGV[1]))",
                "1",
                &name,
                &huge,
            ]);
        }
        let before = peak_memory(fleet.instances[0].process.0.id());
        assert_eq!(fleet.status(0, &key).await, 200);
        let grown = peak_memory(fleet.instances[0].process.0.id()) - before;
        assert!(grown < 24 * MIB, "{kind} as {make}: {} MiB", grown / MIB);
        until("it is replaced by one of Keystile's own", 10 * SECOND, async || {
            redis.command(&["TYPE", &name]) == "string"
                && redis.command(&["STRLEN", &name]).parse::<usize>().unwrap() < MIB
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn proofs_of_a_prefix_stay_few_however_often_they_are_written() {
    let redis = Redis::start();
    let url = redis.url();
    let settings = [
        ("KEYSTILE_REDIS_URL", url.as_str()),
        ("KEYSTILE_REDIS_TIMEOUT", "2s"),
        ("KEYSTILE_CACHE_SECRET", SECRET),
    ];
    let mut fleet = Fleet::start(1, &settings).await;
    let key = fleet.key(&[]);
    let [name, records] =
        ["proofs", "records"].map(|kind| format!("keystile:{{{}}}:{kind}", &key.credential[..8]));
    let length = || redis.command(&["STRLEN", &name]).parse::<usize>().unwrap();
    // What is read while the key's own change is applied is not shared: the next check is.
    until("it is shared", 5 * SECOND, async || {
        assert_eq!(fleet.status(0, &key).await, 200);
        length() > 0 && redis.command(&["EXISTS", &records]) == "1"
    })
    .await;
    let proof = redis.command(&["GET", &name]);
    // Many instances have said the same over and over, and somebody else has written something between.
    let before = format!("other {}\n{}", "x".repeat(100), proof.repeat(200));
    redis.command(&["SET", &name, &before]);
    fleet.add(&fleet.schema.url(), &settings).await;
    assert_eq!(fleet.status(1, &key).await, 200);
    let stats = fleet.instances[1].setup.stats().await;
    assert_eq!(stats["tiers"]["redis"]["proofs"]["hits"].as_u64(), Some(1), "the right one counts: {stats}");
    // One that does not believe it proves the key itself, and says so.
    fleet.add(&fleet.schema.url(), &[&settings[..2], &[("KEYSTILE_CACHE_SECRET", OTHER)]].concat()).await;
    assert_eq!(fleet.status(2, &key).await, 200);
    until("it is written anew", 5 * SECOND, async || length() < before.len()).await;
    let lines = redis.command(&["GET", &name]);
    assert!(lines.starts_with("other ") && lines.contains(&proof) && lines.lines().count() == 3, "{lines}");
}
