//! Steady requests through every Envoy, and what was answered.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use reqwest::Client;

use super::{
    keys::{self, Key, OWN_PATH, Role},
    oracle::{Span, Truth},
    world::{INSTANCES, World},
};

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The key itself, by a caller who may have been here before.
    Key,
    /// The key itself, on a path that it may not use.
    Elsewhere,
    WrongSecret,
    MadeUp,
}

/// One request and its answer.
#[derive(Debug, Clone)]
pub struct Asked {
    pub instance: usize,
    pub kind: Kind,
    /// Its place in the world's list. None for one that was made up.
    pub key: Option<usize>,
    pub span: Span,
    /// The same, in milliseconds of the clock.
    pub clock: (u64, u64),
    /// 0 for no answer.
    pub status: u16,
    pub code: String,
}

/// What was asked, and what instances said about themselves.
#[derive(Default)]
pub struct Record {
    asked: Mutex<Vec<Asked>>,
    pulses: [Mutex<Vec<Pulse>>; INSTANCES],
    is_over: AtomicBool,
    fresh: AtomicUsize,
}

/// What an instance said about its change feed, between two times.
#[derive(Debug, Clone, Copy)]
pub struct Pulse {
    pub asked: Instant,
    pub heard: Instant,
    pub is_up: bool,
}

/// Requests that are under way at a time, through each Envoy.
const CALLERS: usize = 4;
/// Between the requests of one caller.
const THINK: std::ops::Range<u64> = 20..120;
const TIMEOUT: Duration = Duration::from_secs(5);

impl Record {
    /// Sends requests until [`end`](Self::end).
    pub fn begin(self: &Arc<Self>, world: &Arc<World>, seed: u64) {
        for instance in 0..INSTANCES {
            for caller in 0..CALLERS {
                let (record, world) = (Arc::clone(self), Arc::clone(world));
                let rng = StdRng::seed_from_u64(seed ^ ((1 + instance * CALLERS + caller) as u64) << 40);
                tokio::spawn(async move { record.call(&world, instance, rng).await });
            }
            let (record, world) = (Arc::clone(self), Arc::clone(world));
            tokio::spawn(async move { record.listen(&world, instance).await });
        }
    }

    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// What was asked and answered since the last call.
    pub fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// Looks at what was asked and answered, past the first `seen`.
    pub fn with_asked_from<T>(&self, seen: usize, look: impl FnOnce(&[Asked]) -> T) -> T {
        look(&self.asked.lock().unwrap()[seen..])
    }

    /// Whether the instance said that its feed is up, before, throughout and after.
    pub fn is_up(&self, instance: usize, span: Span) -> bool {
        let pulses = self.pulses[instance].lock().unwrap();
        let after = pulses.partition_point(|pulse| pulse.asked < span.received);
        let Some(last) = pulses.get(after) else { return false };
        let before = pulses[..after].iter().rev().take_while(|pulse| pulse.heard > span.sent).count();
        let first = after.saturating_sub(before + 1);
        last.is_up && pulses[first..after].iter().all(|pulse| pulse.is_up)
    }

    /// When the instance last said since then that its feed is not up.
    pub fn last_down(&self, since: Instant) -> Option<Instant> {
        let last = |pulses: &Mutex<Vec<Pulse>>| {
            let pulses = pulses.lock().unwrap();
            pulses.iter().rev().find(|pulse| !pulse.is_up).map(|pulse| pulse.heard)
        };
        self.pulses.iter().filter_map(last).filter(|down| *down > since).max()
    }

    async fn listen(&self, world: &World, instance: usize) {
        let client = Client::builder().timeout(Duration::from_millis(500)).build().unwrap();
        let url = format!("http://{}/stats", world.instances[instance].admin());
        while !self.is_over() {
            let asked = Instant::now();
            let is_up = async {
                let answer = client.get(&url).send().await.ok()?;
                let stats: serde_json::Value = answer.json().await.ok()?;
                stats["change_feed"]["up"].as_bool()
            };
            let is_up = is_up.await == Some(true);
            self.pulses[instance].lock().unwrap().push(Pulse { asked, heard: Instant::now(), is_up });
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    }

    async fn call(&self, world: &World, instance: usize, mut rng: StdRng) {
        // Two networks: an attacker's, and that of those who have keys.
        let client = |address: [u8; 4]| {
            let address = std::net::IpAddr::from(address);
            Client::builder().local_address(address).timeout(TIMEOUT).build().unwrap()
        };
        let (good, bad) = (client([127, 1, 0, 1]), client([127, 2, 0, 1]));
        while !self.is_over() {
            let (kind, key) = self.choose(world, &mut rng);
            let is_attack = matches!(kind, Kind::WrongSecret | Kind::MadeUp);
            let client = if is_attack { &bad } else { &good };
            let credential = match (kind, key) {
                (Kind::MadeUp, _) | (_, None) => keys::made_up(&mut rng),
                (Kind::WrongSecret, Some(key)) => key.wrong_secret(&mut rng),
                (Kind::Key | Kind::Elsewhere, Some(key)) => key.credential.clone(),
            };
            let path = if kind == Kind::Elsewhere { "/v1/elsewhere" } else { OWN_PATH };
            let url = format!("{}{path}", world.instances[instance].url);
            let (sent, clock) = (Instant::now(), clock());
            let answer = client.get(url).header("x-api-key", credential).send().await;
            let (status, code) = match answer {
                Ok(answer) => {
                    let status = answer.status().as_u16();
                    let body = answer.json::<serde_json::Value>().await.unwrap_or_default();
                    (status, body["code"].as_str().unwrap_or_default().to_owned())
                }
                Err(_) => (0, String::new()),
            };
            let span = Span { sent, received: Instant::now() };
            let key = key.map(|key| key.id - 1);
            let clock = (clock, self::clock());
            self.asked.lock().unwrap().push(Asked { instance, kind, key, span, clock, status, code });
            tokio::time::sleep(Duration::from_millis(rng.random_range(THINK))).await;
        }
    }

    fn choose<'a>(&self, world: &'a World, rng: &mut StdRng) -> (Kind, Option<&'a Key>) {
        let any = |role, rng: &mut StdRng| {
            let count = world.of(role).count();
            world.of(role).nth(rng.random_range(0..count))
        };
        match rng.random_range(0..100) {
            0..10 => (Kind::MadeUp, None),
            10..20 => (Kind::WrongSecret, any(Role::Known, rng)),
            20..28 => (Kind::Elsewhere, any(Role::Restricted, rng)),
            28..34 => (Kind::Key, any(Role::Restricted, rng)),
            34..48 => (Kind::Key, any(Role::Limited, rng)),
            48..52 => match world.of(Role::Fresh).nth(self.fresh.fetch_add(1, Ordering::Relaxed)) {
                Some(key) => (Kind::Key, Some(key)),
                None => (Kind::Key, any(Role::Known, rng)),
            },
            _ => (Kind::Key, any(Role::Known, rng)),
        }
    }
}

fn clock() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

impl Asked {
    /// Whether the key itself was presented where it may be used, and may be used.
    pub fn is_good(&self, world: &World) -> bool {
        let Some(key) = self.key.map(|at| &world.keys[at]) else { return false };
        self.kind == Kind::Key && !key.may(Truth::Denied, self.span, Duration::ZERO)
    }
}
