//! The fence under the orders in which threads can meet it: thousands of them, and every one of few steps.
//!
//! Its file is compiled once more here, out of parts whose scheduling a test decides.

use std::{collections::HashMap, time::Instant};

use shuttle::{
    sync::{Arc, Mutex},
    thread,
};

#[expect(dead_code, reason = "only what schedules can disturb is used")]
#[path = "../../src/revocation/fence.rs"]
mod fence;
#[expect(dead_code, reason = "only what schedules can disturb is used")]
#[path = "../../src/revocation/log_position.rs"]
mod log_position;
#[expect(dead_code, reason = "only what schedules can disturb is used")]
#[path = "../../src/revocation/snapshot.rs"]
mod snapshot;

/// What the fence is built of here.
mod sync {
    pub(super) use shuttle::sync::{
        MutexGuard,
        atomic::{AtomicU64, Ordering},
    };

    /// As parking_lot's, of which the fence is built otherwise.
    pub(super) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(super) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(super) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }
}

use fence::{Change, Changes, Fence};

/// A database with one key, and two caches before it, each with a fence of its own.
#[derive(Clone)]
struct World {
    database: Arc<Mutex<u32>>,
    cache: Arc<Mutex<HashMap<u8, u32>>>,
    fence: Arc<Fence<u8>>,
}

const KEY: u8 = 1;

impl World {
    fn new() -> Self {
        Self { database: Arc::default(), cache: Arc::default(), fence: Arc::new(Fence::new(Instant::now())) }
    }

    /// Reads, and remembers what the fence lets.
    fn read(&self) {
        let generation = self.fence.generation();
        let value = *self.database.lock().unwrap();
        self.fence.admit(KEY, generation, || {
            self.cache.lock().unwrap().insert(KEY, value);
        });
    }

    /// Serves what is remembered on, since the database does not answer, and remembers that.
    fn fall_back(&self) {
        let generation = self.fence.generation();
        self.fence.admit(KEY, generation, || {
            let held = self.cache.lock().unwrap().get(&KEY).copied();
            let Some(held) = held else { return };
            self.cache.lock().unwrap().insert(KEY, held);
        });
    }

    /// Changes the database, and hears of it.
    fn change(&self, to: u32) {
        *self.database.lock().unwrap() = to;
        let change = Change { key: Some(KEY), id: to.into() };
        let position = format!("7/{0}:{0}:", to + 1).parse().unwrap();
        self.fence.apply(
            Changes::Logged(vec![change], std::sync::Arc::new(position)),
            Instant::now(),
            || {
                self.cache.lock().unwrap().remove(&KEY);
            },
        );
    }

    /// Once everything has been heard of, nothing older is remembered.
    fn check(&self) {
        let value = *self.database.lock().unwrap();
        let remembered = self.cache.lock().unwrap().get(&KEY).copied();
        assert!(remembered.is_none_or(|remembered| remembered == value), "{remembered:?} and not {value}");
    }
}

fn readers_and_a_change() {
    let world = World::new();
    let mut threads: Vec<_> = (0..2)
        .map(|_| {
            let world = world.clone();
            thread::spawn(move || world.read())
        })
        .collect();
    let changing = world.clone();
    threads.push(thread::spawn(move || changing.change(1)));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    world.check();
}

fn readers_and_changes_in_a_row() {
    let world = World::new();
    let mut threads: Vec<_> = (0..3)
        .map(|_| {
            let world = world.clone();
            thread::spawn(move || (0..2).for_each(|_| world.read()))
        })
        .collect();
    let changing = world.clone();
    threads.push(thread::spawn(move || (1..=2).for_each(|to| changing.change(to))));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    world.check();
}

fn outage_and_a_change() {
    let world = World::new();
    world.read();
    let (falling, changing) = (world.clone(), world.clone());
    let threads = [thread::spawn(move || falling.fall_back()), thread::spawn(move || changing.change(1))];
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    world.check();
}

#[test]
fn what_serves_through_an_outage_is_not_brought_back_in_any() {
    shuttle::check_dfs(outage_and_a_change, Some(20_000));
}

#[test]
fn reading_from_before_a_change_is_remembered_in_no_order_of_steps() {
    shuttle::check_dfs(readers_and_a_change, Some(20_000));
}

#[test]
fn nor_in_thousands_of_random_ones() {
    shuttle::check_random(readers_and_changes_in_a_row, 5_000);
    shuttle::check_pct(readers_and_changes_in_a_row, 5_000, 3);
}
