//! Redis and Postgres cut off, refused, hung and slow, under load: nobody gets in, and nobody is locked out who
//! was known.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tonic::transport::Channel;

use crate::harness::{
    client::{ask, status},
    fleet::Fleet,
    postgres::{self, Schema},
    proxy::{Proxy, Wire},
    redis::Redis,
    service::{Key, Keystile, Setup},
    until,
};

const SECOND: Duration = Duration::from_secs(1);
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Asks without pause, and counts what it is told.
struct Load {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Counts {
    asked: AtomicUsize,
    /// A wrong or unknown key got in.
    wrong_allows: AtomicUsize,
    /// A good and known key was told that it is none.
    wrong_denials: AtomicUsize,
    /// A good and known key was told to come back.
    known_turned_away: AtomicUsize,
    /// The longest that a known key waited, in milliseconds.
    slowest_millis: AtomicUsize,
}

impl Load {
    /// Known keys, and wrong secrets for them, and prefixes that nobody has.
    fn on(channels: &[Channel], known: &[Key]) -> Self {
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
        let task = |channel: Channel, key: Key| {
            let (stop, counts) = (Arc::clone(&stop), Arc::clone(&counts));
            tokio::spawn(async move {
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let asked = Instant::now();
                    counts.known(status(&ask(&channel, &key.credential).await), asked.elapsed());
                    let unknown = format!("zz{n:06}unknown");
                    let wrong = if n % 10 == 0 { format!("{}x", key.credential) } else { unknown };
                    counts.wrong(status(&ask(&channel, &wrong).await));
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
        };
        let tasks =
            channels.iter().flat_map(|channel| known.iter().map(|key| task(channel.clone(), key.clone())));
        let tasks = tasks.collect();
        Self { stop, counts, tasks }
    }

    async fn end(self, what: &str) -> Arc<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        println!("{what}: {:?}", self.counts);
        self.counts
    }
}

impl Counts {
    fn known(&self, status: i32, took: Duration) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.slowest_millis.fetch_max(took.as_millis() as usize, Ordering::Relaxed);
        match status {
            200 => {}
            503 => _ = self.known_turned_away.fetch_add(1, Ordering::Relaxed),
            _ => _ = self.wrong_denials.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn wrong(&self, status: i32) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if status == 200 {
            self.wrong_allows.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Nobody got in, and nobody who was known was locked out.
    fn expect_none_wrong(&self) {
        assert!(self.asked.load(Ordering::Relaxed) > 100, "{self:?}");
        for count in [&self.wrong_allows, &self.wrong_denials, &self.known_turned_away] {
            assert_eq!(count.load(Ordering::Relaxed), 0, "{self:?}");
        }
    }
}

/// What can go wrong with a wire.
const OUTAGES: [Wire; 4] = [Wire::Cut, Wire::Refusing, Wire::Hanging, Wire::Slow(Duration::from_secs(3))];

#[tokio::test(flavor = "multi_thread")]
async fn redis_lost_under_load_changes_no_answer() {
    let redis = Redis::start();
    let proxy = Proxy::before(redis.address()).await;
    let url = proxy.url(&redis.url(), redis.address());
    // Short, so that Redis is asked all the time.
    let settings = [
        ("KEYSTILE_REDIS_URL", url.as_str()),
        ("KEYSTILE_CACHE_SECRET", SECRET),
        ("KEYSTILE_RECORD_TTL", "200ms"),
        ("KEYSTILE_NEGATIVE_TTL", "200ms"),
    ];
    let fleet = Fleet::start(2, &settings).await;
    let known: Vec<_> = (0..3).map(|_| fleet.key(&[])).collect();
    for key in &known {
        fleet.expect(key, 200).await;
    }
    for outage in OUTAGES {
        let load = Load::on(&fleet.channels, &known);
        tokio::time::sleep(SECOND / 2).await;
        proxy.set(outage);
        let fresh = fleet.key(&[]);
        for _ in 0..10 {
            fleet.expect(&fresh, 200).await;
            assert_eq!(status(&ask(&fleet.channels[0], "zz_nobodysKey").await), 401, "{outage:?}");
            tokio::time::sleep(SECOND / 10).await;
        }
        until("it is told", 2 * SECOND, async || {
            fleet.instances[0].setup.stats().await["redis"]["up"] == false
        })
        .await;
        assert_eq!(
            fleet.instances[0].setup.readyz().await.0,
            200,
            "it is no reason to send checks elsewhere"
        );
        proxy.mend();
        let mended = Instant::now();
        until("Redis is found again", 3 * SECOND, async || {
            let mut up = true;
            for instance in &fleet.instances {
                up &= instance.setup.stats().await["redis"]["up"] == true;
            }
            up
        })
        .await;
        let recovery = mended.elapsed();
        let counts = load.end(&format!("Redis {outage:?}, found again after {recovery:?}")).await;
        counts.expect_none_wrong();
        assert!(recovery < 2 * SECOND, "{recovery:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_flushed_restarted_and_full_changes_no_answer() {
    let mut redis = Redis::with(&["maxmemory 1500kb", "maxmemory-policy allkeys-lru"]);
    let url = redis.url();
    let settings = [
        ("KEYSTILE_REDIS_URL", url.as_str()),
        ("KEYSTILE_CACHE_SECRET", SECRET),
        ("KEYSTILE_RECORD_TTL", "100ms"),
    ];
    let fleet = Fleet::start(2, &settings).await;
    let known: Vec<_> = (0..3).map(|_| fleet.key(&[])).collect();
    for key in &known {
        fleet.expect(key, 200).await;
    }
    let load = Load::on(&fleet.channels, &known);
    tokio::time::sleep(SECOND / 2).await;
    redis.command(&["FLUSHALL"]);
    tokio::time::sleep(SECOND / 2).await;
    redis.kill();
    tokio::time::sleep(SECOND / 2).await;
    redis.revive();
    for n in 0..2000 {
        redis.command(&["SET", &format!("filler:{n}"), &"x".repeat(1000)]);
    }
    let evicted = redis.command(&["INFO", "stats"]);
    let evicted =
        evicted.lines().find_map(|line| line.strip_prefix("evicted_keys:")).unwrap().trim().to_owned();
    assert_ne!(evicted, "0", "Redis had to make room");
    tokio::time::sleep(SECOND / 2).await;
    load.end("Redis flushed, restarted and full").await.expect_none_wrong();
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_lost_under_load_leaves_known_keys_working_and_the_rest_at_503() {
    let schema = Schema::create().await;
    let server = postgres::server().address();
    let proxy = Proxy::before(server).await;
    let by_way = proxy.url(&schema.url(), server);
    let settings = [("KEYSTILE_RECORD_TTL", "300ms"), ("KEYSTILE_NEGATIVE_TTL", "60s")];
    let fleet = Fleet::on(schema, &by_way, 2, &settings).await;
    let known: Vec<_> = (0..3).map(|_| fleet.key(&[])).collect();
    for key in &known {
        fleet.expect(key, 200).await;
    }
    for outage in OUTAGES {
        let load = Load::on(&fleet.channels, &known);
        tokio::time::sleep(SECOND / 2).await;
        // Good, and seen by nobody yet.
        let fresh = fleet.key(&[]);
        proxy.set(outage);
        tokio::time::sleep(SECOND).await;
        for n in 0..10 {
            fleet.expect(&fresh, 503).await;
            // Another prefix each time: nothing is known of them, and that is no denial.
            let unknown = format!("yy{n:02}{:04}nobody", fresh.id % 10_000);
            assert_eq!(status(&ask(&fleet.channels[0], &unknown).await), 503, "{outage:?}");
        }
        until("it is told", 3 * SECOND, async || {
            let stats = fleet.instances[0].setup.stats().await;
            stats["change_feed"]["up"] == false && stats["database"]["up"] == false
        })
        .await;
        assert_eq!(fleet.instances[0].setup.readyz().await.0, 200);
        proxy.mend();
        let mended = Instant::now();
        until("the rest is answered again", 3 * SECOND, async || {
            fleet.status(0, &fresh).await == 200
                && fleet.status(1, &fresh).await == 200
                && status(&ask(&fleet.channels[0], "xx_nobodysKey").await) == 401
        })
        .await;
        let recovery = mended.elapsed();
        until("changes are heard of again", 3 * SECOND, async || {
            fleet.instances[0].setup.stats().await["change_feed"]["up"] == true
        })
        .await;
        let counts = load.end(&format!("Postgres {outage:?}, found again after {recovery:?}")).await;
        counts.expect_none_wrong();
        assert!(recovery < 2 * SECOND, "{recovery:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn change_during_an_outage_of_the_feed_is_read_when_it_is_over() {
    let schema = Schema::create().await;
    let server = postgres::server().address();
    let proxy = Proxy::before(server).await;
    let by_way = proxy.url(&schema.url(), server);
    let fleet = Fleet::on(schema, &by_way, 2, &[]).await;
    let key = fleet.key(&[]);
    fleet.expect(&key, 200).await;
    proxy.set(Wire::Hanging);
    until("the feed is down", 5 * SECOND, async || {
        fleet.instances[1].setup.stats().await["change_feed"]["up"] == false
    })
    .await;
    fleet.schema.execute("UPDATE api_keys SET is_active = false").await;
    proxy.mend();
    until("what was missed is read", 2 * SECOND, async || {
        fleet.status(0, &key).await == 401 && fleet.status(1, &key).await == 401
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_serves_what_it_has_while_postgres_is_away() {
    let redis = Redis::start();
    let schema = Schema::create().await;
    let server = postgres::server().address();
    let proxy = Proxy::before(server).await;
    let by_way = proxy.url(&schema.url(), server);
    let settings = [("KEYSTILE_REDIS_URL", redis.url()), ("KEYSTILE_CACHE_SECRET", SECRET.to_owned())];
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut fleet = Fleet::on(schema, &by_way, 1, &settings).await;
    let key = fleet.key(&[]);
    // Asked again: a read from before the feed heard of the key is not shared.
    until("it is shared", 5 * SECOND, async || {
        fleet.expect(&key, 200).await;
        redis.dump().matches("keystile:").count() >= 2
    })
    .await;
    fleet.add(&by_way, &settings).await;
    proxy.cut();
    until("the outage is noticed", 5 * SECOND, async || {
        fleet.instances[1].setup.stats().await["database"]["up"] == false
    })
    .await;
    assert_eq!(fleet.status(1, &key).await, 200, "never asked before, and known to the other");
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_without_redis_and_not_without_the_database() {
    let mut redis = Redis::start();
    redis.kill();
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    let url = redis.url();
    let Keystile { setup, process: _process } = setup.start(&[("KEYSTILE_REDIS_URL", &url)]).await;
    let channel = crate::harness::client::channel(setup.tcp).await;
    assert_eq!(status(&ask(&channel, &key.credential).await), 200);
    until("it is degraded", 2 * SECOND, async || {
        let (status, body) = setup.readyz().await;
        assert_eq!(status, 200);
        body["status"] == "degraded" && body["redis"]["up"] == false
    })
    .await;
    redis.revive();
    until("Redis is found", 2 * SECOND, async || setup.readyz().await.1["status"] == "ready").await;

    let setup = Setup::with_database("postgres://nobody@127.0.0.1:1/none");
    let Keystile { setup, process: _process } = setup.start_unready(&[("KEYSTILE_REDIS_URL", &url)]);
    until("it says why not", 5 * SECOND, async || {
        let (status, body) = setup.readyz().await;
        status == 503 && body["database"]["problem"].is_string()
    })
    .await;
}
