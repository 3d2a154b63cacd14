//! First proofs during floods of made-up keys and wrong secrets: good keys get in, and what callers bring about is
//! handed to no failure mode of Envoy's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tonic::transport::Channel;

use crate::harness::{
    client::{Asked, ask_about, channel, code, status, try_ask, try_ask_about},
    fleet::Fleet,
    postgres::{self, Schema},
    proxy::{Proxy, Wire},
    service::{Key, Setup},
};

/// Cheap enough for a test built without optimisation, and dear enough to be worth a flood.
const COST: &str = "8";
const GOOD_KEYS: usize = 20;

/// Credentials that no key has, sent at a fixed rate.
struct Flood {
    stop: Arc<AtomicBool>,
    let_in: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Flood {
    /// Sends the `n`th credential from the `n`th address, `rate` times a second.
    fn start(
        channel: &Channel,
        rate: u32,
        attempt: impl Fn(usize) -> (String, Option<String>) + Send + 'static,
    ) -> Self {
        let (stop, let_in) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let task = tokio::spawn({
            let (channel, stop, let_in) = (channel.clone(), Arc::clone(&stop), Arc::clone(&let_in));
            async move {
                let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
                for n in 0.. {
                    tick.tick().await;
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let (credential, client) = attempt(n);
                    let (channel, let_in) = (channel.clone(), Arc::clone(&let_in));
                    tokio::spawn(async move {
                        // The server may be gone before the last answers.
                        let asked = Asked {
                            credential: &credential,
                            client: client.as_deref(),
                            method: "GET",
                            path: "/v1/models",
                            ..Asked::default()
                        };
                        let answer = try_ask_about(&channel, &asked).await;
                        if answer.is_ok_and(|answer| status(&answer) == 200) {
                            let_in.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            }
        });
        Self { stop, let_in, task }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        assert_eq!(self.let_in.load(Ordering::Relaxed), 0);
    }
}

/// Status and code of the answer to this credential from this address.
async fn show(channel: &Channel, credential: &str, client: Option<&str>) -> (i32, Option<String>) {
    let asked = Asked { credential, client, method: "GET", path: "/v1/models", ..Asked::default() };
    let answer = ask_about(channel, &asked).await;
    (status(&answer), code(&answer))
}

/// A prefix that no key has, another one each time.
fn made_up(n: usize) -> String {
    format!("zz{n:06}made-up-and-of-no-key")
}

/// Uses each key once, one after the other, from addresses of their own or none; the answers that were not 200.
async fn first_uses(channel: &Channel, keys: &[Key], vouched: bool) -> Vec<(i32, Option<String>)> {
    let mut denied = Vec::new();
    for (n, key) in keys.iter().enumerate() {
        let client = vouched.then(|| format!("198.51.{n}.7"));
        let answer = show(channel, &key.credential, client.as_deref()).await;
        if answer.0 != 200 {
            denied.push(answer);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    denied
}

fn good_keys(setup: &Setup, count: usize) -> Vec<Key> {
    setup.create_user("ada");
    (0..count).map(|_| setup.create_key("ada", &["--cost", COST])).collect()
}

/// Good keys are used for the first time during a flood; each of them must get in.
async fn expect_every_good_key_in(
    vouched: bool,
    rate: u32,
    attempt: impl Fn(usize, &[Key]) -> (String, Option<String>) + Send + 'static,
) {
    let setup = Setup::new();
    let mut keys = good_keys(&setup, 2 * GOOD_KEYS);
    let targets = keys.split_off(GOOD_KEYS);
    let keystile = setup.start(&[("KEYSTILE_BCRYPT_COST", COST), ("KEYSTILE_BCRYPT_THREADS", "2")]).await;
    let channel = channel(keystile.setup.tcp).await;
    let flood = Flood::start(&channel, rate, move |n| attempt(n, &targets));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let denied = first_uses(&channel, &keys, vouched).await;
    flood.end().await;
    let metrics = keystile.setup.metrics().await;
    let counts = metrics.lines().filter(|line| line.contains("first_proofs") || line.contains("bcrypt"));
    let counts: Vec<_> = counts.filter(|line| !line.starts_with('#')).collect();
    assert!(denied.is_empty(), "{} of {}: {denied:?}\n{}", denied.len(), keys.len(), counts.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn made_up_keys_behind_the_proxy_of_everybody_keep_no_good_key_out() {
    expect_every_good_key_in(false, 100, |n, _| (made_up(n), None)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_secrets_of_twenty_real_prefixes_keep_no_good_key_out() {
    let wrong = |n: usize, keys: &[Key]| (format!("{}{n}", keys[n % keys.len()].credential), None);
    expect_every_good_key_in(false, 100, wrong).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn made_up_keys_and_wrong_secrets_from_a_whole_48_keep_no_good_key_out() {
    let attempt = |n: usize, keys: &[Key]| {
        let address = format!("2001:db8:1:{:x}::1", n % 65_536);
        let wrong = format!("{}{n}", keys[n % keys.len()].credential);
        (if n.is_multiple_of(5) { wrong } else { made_up(n) }, Some(address))
    };
    expect_every_good_key_in(true, 150, attempt).await;
}

/// Postgres is 40 ms away and a check has 200 ms: the look-ups take turns, and not all can have theirs in time.
#[tokio::test(flavor = "multi_thread")]
async fn many_unknown_keys_at_once_and_a_far_database_are_no_failure() {
    let schema = Schema::create().await;
    let server = postgres::server().address();
    let proxy = Proxy::before(server).await;
    let by_way = proxy.url(&schema.url(), server);
    let settings = [("KEYSTILE_ON_FAILURE", "defer"), ("KEYSTILE_TIMEOUT", "200ms")];
    let fleet = Fleet::on(schema, &by_way, 1, &settings).await;
    proxy.set(Wire::Slow(Duration::from_millis(40)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    for (round, count) in [50, 400].into_iter().enumerate() {
        let asked = (0..count).map(|n| {
            let (channel, credential) = (fleet.channels[0].clone(), made_up(round * 1000 + n));
            tokio::spawn(async move { try_ask(&channel, &credential).await })
        });
        let mut errors = 0;
        for answer in asked.collect::<Vec<_>>() {
            match answer.await.unwrap() {
                Ok(answer) => {
                    let code = code(&answer).expect("a denial");
                    assert!(matches!(&*code, "overloaded" | "invalid_credential"), "{code}");
                }
                Err(_) => errors += 1,
            }
        }
        assert_eq!(errors, 0, "gRPC errors of {count}");
    }
}
