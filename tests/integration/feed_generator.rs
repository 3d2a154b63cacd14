//! Random schemas, random events, and one promise.
//!
//! Each world is a database with random tables and two instances. Ordinary changes deny keys, and in between events
//! happen that the change feed may or may not survive. After each committed change the key is denied within a second,
//! or the feed says that it is not up and the key is denied within 30 s. While nothing happens, the feed is up.
//!
//! `KEYSTILE_TEST_SEED`, `KEYSTILE_TEST_SECONDS` and `KEYSTILE_TEST_WORLD` choose the seed, the time and one world.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::sync::Semaphore;

use events::Event;
use watch::UpTime;
use world::World;

mod changes;
mod database;
mod events;
mod model;
mod schema;
mod watch;
mod world;

/// Worlds in which something happens at one time; in others only time passes.
const LANES: usize = 3;
/// How long the last world may take.
const TAIL: Duration = Duration::from_secs(35);

/// What the worlds have come to.
#[derive(Default)]
struct Outcome {
    failures: Vec<String>,
    worlds: usize,
    up: UpTime,
}

#[test]
fn change_is_heard_of_or_the_feed_says_that_it_is_not_up() {
    let seed = variable("KEYSTILE_TEST_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let seconds = variable("KEYSTILE_TEST_SECONDS").unwrap_or(60);
    let only = variable("KEYSTILE_TEST_WORLD");
    println!("KEYSTILE_TEST_SEED={seed} KEYSTILE_TEST_SECONDS={seconds}");
    let began = Instant::now();
    let until = Duration::from_secs(seconds).saturating_sub(TAIL);
    let lanes = Arc::new(Semaphore::new(LANES));
    let outcome = Arc::<Mutex<Outcome>>::default();
    let mut threads = Vec::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for number in 0.. {
        let lane = runtime.block_on(Arc::clone(&lanes).acquire_owned()).unwrap();
        if number > 0 && (began.elapsed() > until || only.is_some()) {
            break;
        }
        let number = only.unwrap_or(number);
        let outcome = Arc::clone(&outcome);
        threads.push(std::thread::spawn(move || {
            // Of its own, so that what blocks holds up this world alone.
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let (failure, up) = runtime.block_on(live(number, seed, lane));
            let mut outcome = outcome.lock().unwrap();
            outcome.worlds += 1;
            outcome.up.up += up.up;
            outcome.up.down += up.down;
            if let Some(failure) = failure {
                println!("after {:.0?}: world {number}: {failure}", began.elapsed());
                outcome.failures.push(format!("world {number}: {failure}"));
            }
        }));
    }
    let panics = threads.into_iter().filter_map(|thread| thread.join().err()).count();
    let outcome = outcome.lock().unwrap();
    let UpTime { up, down } = outcome.up;
    println!("{} worlds; where nothing happened the feed was up {up} and down {down} times", outcome.worlds);
    let failures = outcome.failures.len();
    assert!(failures + panics == 0, "KEYSTILE_TEST_SEED={seed}: {failures} worlds failed, {panics} panicked");
    assert!(down <= (up + down) / 100, "the feed was down {down} times of {}", up + down);
}

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is {value}, and no number")))
}

/// One world from its creation to its end.
async fn live(number: u64, seed: u64, lane: tokio::sync::OwnedSemaphorePermit) -> (Option<String>, UpTime) {
    let events = deal(seed, number);
    let seed = seed.wrapping_mul(1_000_003).wrapping_add(number);
    // Every fourth is a file, every sixth reads a standby.
    let (is_postgres, reads_replica) = (number % 4 != 3, number % 6 == 4);
    let mut world = World::create(seed, is_postgres, reads_replica).await;
    let count = StdRng::seed_from_u64(seed).random_range(1..=3);
    let lived = world.live(&events, count, lane).await;
    let failure = lived.err().map(|problem| format!("{problem}\n{}", world.watch.journal()));
    (failure, world.up_time())
}

/// All events, in an order of the run's own, beginning further on in each world: so that all of them happen soon.
fn deal(seed: u64, number: u64) -> Vec<Event> {
    let mut events = Event::all();
    events.shuffle(&mut StdRng::seed_from_u64(seed));
    let count = events.len();
    events.rotate_left(usize::try_from(number).unwrap_or(0) * 2 % count);
    events
}
