//! Facts about what is remembered, over a store that counts what it is asked.

use super::*;
use crate::{record::fixtures, revocation::Changes};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Counts what is asked of it; knows the sample's prefix and no other.
#[derive(Default)]
struct CountingStore {
    asked: Arc<AtomicUsize>,
    broken: Arc<AtomicBool>,
    unfit: bool,
}

impl KeyStore for CountingStore {
    async fn records(&self, prefix: Prefix, _: Timestamps) -> Result<Arc<Lookup>, StoreError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(10)).await;
        if self.broken.load(Ordering::SeqCst) {
            let why = "as the test wants".into();
            return Err(if self.unfit { StoreError::Unfit(why) } else { StoreError::Unavailable(why) });
        }
        let record = Arc::new(fixtures::record());
        let records = if prefix == record.prefix { Arc::from([record]) } else { Arc::default() };
        Ok(Arc::new(Lookup::fresh(records, Tier::Database)))
    }
}

const CONFIG: MemoryConfig = MemoryConfig {
    capacity: 100,
    record_ttl: Duration::from_secs(300),
    negative_ttl: Duration::from_secs(10),
    stale_if_error: Duration::from_secs(300),
};

fn memory(broken: bool) -> (Memory<CountingStore>, Arc<AtomicUsize>) {
    let next = CountingStore { broken: Arc::new(broken.into()), ..CountingStore::default() };
    let asked = Arc::clone(&next.asked);
    (over(next), asked)
}

fn over(next: CountingStore) -> Memory<CountingStore> {
    let fence = Arc::new(Fence::new(Instant::now()));
    fence.set_state(Some(Instant::now() + Duration::from_secs(3600)), None);
    Memory::new(next, CONFIG, fence, &Metrics::new().expect("builds"))
}

fn later(now: Timestamps, seconds: u64) -> Timestamps {
    Timestamps { monotonic: now.monotonic + Duration::from_secs(seconds), ..now }
}

fn known() -> Prefix {
    fixtures::record().prefix
}

fn unknown(n: usize) -> Prefix {
    Prefix::parse(&format!("zz{n:06}")).expect("a prefix")
}

#[tokio::test]
async fn records_are_read_once_within_their_ttl() {
    let (memory, asked) = memory(false);
    let now = Timestamps::now();
    assert_eq!(memory.records(known(), now).await.expect("found").tier, Tier::Database);
    let again = memory.records(known(), later(now, 269)).await.expect("found");
    assert_eq!((again.tier, again.records.len()), (Tier::Memory, 1));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    memory.records(known(), later(now, 300)).await.expect("found");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn unknown_prefixes_are_cached_briefly() {
    let (memory, asked) = memory(false);
    let now = Timestamps::now();
    for seconds in [0, 8, 10] {
        assert!(memory.records(unknown(1), later(now, seconds)).await.expect("an answer").records.is_empty());
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn flood_of_unknown_prefixes_evicts_no_known_one() {
    let (memory, asked) = memory(false);
    let now = Timestamps::now();
    memory.records(known(), now).await.expect("found");
    for n in 0..10 * CONFIG.capacity {
        memory.0.insert(
            unknown(n),
            &Lookup::fresh([], Tier::Database),
            memory.0.fence.generation(),
            now.monotonic,
        );
    }
    assert!(memory.0.unknown.len() <= CONFIG.capacity);
    assert_eq!(memory.0.known.len(), 1);
    assert_eq!(memory.records(known(), now).await.expect("found").tier, Tier::Memory);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn concurrent_callers_share_one_read() {
    let (memory, asked) = memory(false);
    let now = Timestamps::now();
    let callers: Vec<_> = (0..1000)
        .map(|_| {
            tokio::spawn({
                let memory = memory.clone();
                async move { memory.records(known(), now).await }
            })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.expect("no panic").expect("found").records.len(), 1);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn failure_is_not_cached() {
    let (memory, asked) = memory(true);
    for _ in 0..2 {
        memory.records(unknown(1), Timestamps::now()).await.expect_err("broken");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    assert!(memory.0.unknown.is_empty());
}

#[tokio::test]
async fn known_keys_outlive_an_outage_and_unknown_ones_get_no_answer() {
    // The database is unavailable, or its tables no longer fit.
    for unfit in [false, true] {
        let next = CountingStore { unfit, ..CountingStore::default() };
        let broken = Arc::clone(&next.broken);
        let memory = over(next);
        let now = Timestamps::now();
        memory.records(known(), now).await.expect("found");
        broken.store(true, Ordering::SeqCst);
        for (seconds, stale) in [(269, false), (300, true), (301, true), (569, true)] {
            let found = memory.records(known(), later(now, seconds)).await.expect("found");
            let expected = (1, Tier::Memory, stale);
            assert_eq!((found.records.len(), found.tier, found.stale), expected, "{seconds} s");
        }
        memory.records(known(), later(now, 600)).await.expect_err("too old");
        memory.records(unknown(1), later(now, 300)).await.expect_err("it is not known");
        broken.store(false, Ordering::SeqCst);
        let recovered = memory.records(known(), later(now, 601)).await.expect("found");
        assert_eq!((recovered.tier, recovered.stale), (Tier::Database, false));
    }
}

#[tokio::test]
async fn outage_causes_one_read_a_second_for_each_key() {
    let (memory, asked) = memory(false);
    let now = Timestamps::now();
    memory.records(known(), now).await.expect("found");
    memory.0.next.broken.store(true, Ordering::SeqCst);
    for _ in 0..10 {
        memory.records(known(), later(now, 400)).await.expect("stale");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    memory.records(known(), later(now, 401)).await.expect("stale");
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn nothing_is_older_than_the_worst_case_while_the_feed_is_down() {
    let (memory, asked) = memory(false);
    let now = Timestamps::now();
    memory.records(known(), now).await.expect("found");
    memory.0.fence.set_state(None, None);
    assert_eq!(memory.records(known(), later(now, 26)).await.expect("found").tier, Tier::Memory);
    assert_eq!(memory.records(known(), later(now, 30)).await.expect("found").tier, Tier::Database);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn age_in_another_tier_counts() {
    let aged = Lookup {
        age: Duration::from_secs(200),
        ..Lookup::fresh([Arc::new(fixtures::record())], Tier::Redis)
    };
    let (memory, _) = memory(false);
    let now = Timestamps::now();
    memory.0.insert(known(), &aged, memory.0.fence.generation(), now.monotonic);
    assert_eq!(memory.records(known(), later(now, 69)).await.expect("found").tier, Tier::Memory);
    assert_eq!(memory.records(known(), later(now, 100)).await.expect("found").tier, Tier::Database);
}

/// A store whose answer waits, as the test wants, between the reading and the landing.
struct Slow {
    read: tokio::sync::Notify,
    land: tokio::sync::Notify,
}

impl KeyStore for Arc<Slow> {
    async fn records(&self, _: Prefix, _: Timestamps) -> Result<Arc<Lookup>, StoreError> {
        self.read.notify_one();
        self.land.notified().await;
        Ok(Arc::new(Lookup::fresh([Arc::new(fixtures::record())], Tier::Database)))
    }
}

#[tokio::test]
async fn read_from_before_a_change_is_neither_cached_nor_shared_with_later_callers() {
    let slow = Arc::new(Slow { read: tokio::sync::Notify::new(), land: tokio::sync::Notify::new() });
    let fence = Arc::new(Fence::new(Instant::now()));
    let metrics = Metrics::new().expect("builds");
    let memory: Memory<_> = Memory::new(Arc::clone(&slow), CONFIG, Arc::clone(&fence), &metrics);
    let now = Timestamps::now();
    let ask = || {
        let memory = memory.clone();
        tokio::spawn(async move { memory.records(known(), now).await })
    };
    let early = ask();
    slow.read.notified().await;
    fence.apply(Changes::Hints(vec![known()]), now.monotonic, || memory.forget(Some(&[known()])));
    let late = ask();
    slow.read.notified().await;
    slow.land.notify_one();
    early.await.expect("no panic").expect("an answer");
    assert_eq!(memory.len(), (0, 0), "what was read before is not remembered");
    slow.land.notify_one();
    late.await.expect("no panic").expect("an answer of its own");
    assert_eq!(memory.len(), (1, 0));
}

#[tokio::test]
async fn record_without_a_hash_is_read_again_where_one_is_needed() {
    let (memory, asked) = memory(false);
    let now = Timestamps::now();
    let hash = crate::record::KeyHash::parse_redacted(
        &fixtures::record().hash.redacted(&crate::credential::CacheSecret::random()),
    )
    .expect("read");
    let bare = Arc::new(crate::record::KeyRecord { hash, ..fixtures::record() });
    memory.0.insert(known(), &Lookup::fresh([bare], Tier::Redis), memory.0.fence.generation(), now.monotonic);
    assert!(!memory.records(known(), now).await.expect("found").is_hashed());
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    for _ in 0..2 {
        assert!(memory.hashed(known(), now).await.expect("found").is_hashed());
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1, "and then it has one");
}

#[tokio::test]
async fn changed_record_is_not_used_during_an_outage() {
    let (memory, _) = memory(false);
    let now = Timestamps::now();
    memory.records(known(), now).await.expect("found");
    let generation = memory.0.fence.generation();
    assert!(memory.0.fall_back(known(), generation, now.monotonic).is_some(), "nothing has changed");
    // The change is applied, and its record is about to be dropped.
    memory.0.fence.apply(Changes::Hints(vec![known()]), now.monotonic, || ());
    assert!(memory.0.fall_back(known(), generation, now.monotonic).is_none());
}
