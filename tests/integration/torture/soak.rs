//! Keys and connections come and go for minutes: memory, descriptors, threads and tasks do not grow.
//!
//! `make soak` runs it; `KEYSTILE_TEST_SECONDS` chooses the time.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering},
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};

use super::{
    changes, keys,
    load::Record,
    variable,
    world::{Instance, World},
};
use crate::harness::client::{ask, channel};

/// Between two looks at the processes.
const LOOK: Duration = Duration::from_secs(2);
/// Cheap hashes, so that what is measured is not bcrypt.
const COST: u32 = 4;

/// Caches that are full within the first third, so that what grows afterwards is no cache.
const SMALL_CACHES: [(&str, &str); 1] = [("KEYSTILE_MEMORY_CAPACITY", "200")];

/// What a process has at one moment.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    seconds: f64,
    /// Resident memory.
    kib: f64,
    descriptors: f64,
    threads: f64,
    tasks: f64,
}

/// How one of the numbers grew between the first and the last quarter of the samples, and by how much an hour.
#[derive(Debug, Clone, Copy)]
struct Growth {
    from: f64,
    to: f64,
    hourly: f64,
}

impl Growth {
    fn of(samples: &[Sample], number: fn(&Sample) -> f64) -> Self {
        let quarter = samples.len() / 4;
        let median = |part: &[Sample]| {
            let mut numbers: Vec<_> = part.iter().map(number).collect();
            numbers.sort_by(f64::total_cmp);
            numbers[numbers.len() / 2]
        };
        let (from, to) = (median(&samples[..quarter]), median(&samples[samples.len() - quarter..]));
        // Least squares.
        let count = samples.len() as f64;
        let mean = |of: &dyn Fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / count;
        let (time, value) = (mean(&|sample| sample.seconds), mean(&number));
        let shared = mean(&|sample| (sample.seconds - time) * (number(sample) - value));
        let spread = mean(&|sample| (sample.seconds - time).powi(2));
        Self { from, to, hourly: shared / spread * 3600.0 }
    }

    /// Whether it grew by more than this part and this number.
    fn exceeds(self, part: f64, number: f64) -> bool {
        self.to > self.from * (1.0 + part) + number
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} to {:.0} ({:+.0} an hour)", self.from, self.to, self.hourly)
    }
}

impl Sample {
    async fn take(instance: &Instance, began: Instant) -> Self {
        let pid = instance.with_process(|process| process.0.id());
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let metrics = reqwest::get(format!("http://{}/metrics", instance.admin())).await.unwrap();
        let metrics = metrics.text().await.unwrap();
        let tasks = metrics.lines().find_map(|line| line.strip_prefix("keystile_tasks "));
        Self {
            seconds: began.elapsed().as_secs_f64(),
            kib: number("VmRSS:"),
            descriptors: descriptors as f64,
            threads: number("Threads:"),
            tasks: tasks.expect("a metric").parse().unwrap(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes ten minutes; `make soak` runs it"]
async fn memory_descriptors_and_tasks_do_not_grow() {
    let seed = variable("KEYSTILE_TEST_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let seconds = variable("KEYSTILE_TEST_SECONDS").unwrap_or(600);
    println!("KEYSTILE_TEST_SEED={seed} KEYSTILE_TEST_SECONDS={seconds}");
    let world = Arc::new(World::start(seed, 40, 400, &SMALL_CACHES).await);
    let record = Arc::new(Record::default());
    record.begin(&world, seed);
    tokio::spawn(changes::run(Arc::clone(&world), Arc::clone(&record), seed));
    let (connections, created) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    tokio::spawn(connect(Arc::clone(&world), Arc::clone(&record), Arc::clone(&connections)));
    tokio::spawn(create(Arc::clone(&world), Arc::clone(&record), Arc::clone(&created), seed));
    let began = Instant::now();
    let mut samples = vec![Vec::new(); world.instances.len()];
    let mut requests = 0;
    while began.elapsed() < Duration::from_secs(seconds) {
        tokio::time::sleep(LOOK).await;
        requests += record.take().len();
        for (instance, samples) in world.instances.iter().zip(&mut samples) {
            samples.push(Sample::take(instance, began).await);
        }
    }
    record.end();
    let (connections, created) = (connections.load(Ordering::Relaxed), created.load(Ordering::Relaxed));
    println!("{requests} requests, {connections} connections, {created} keys that came and went");
    assert!(requests > 0 && connections > 0 && created > 0, "nothing happened");
    for (at, samples) in samples.iter().enumerate() {
        let samples = &samples[samples.len() / 3..];
        let memory = Growth::of(samples, |sample| sample.kib);
        let descriptors = Growth::of(samples, |sample| sample.descriptors);
        let threads = Growth::of(samples, |sample| sample.threads);
        let tasks = Growth::of(samples, |sample| sample.tasks);
        println!(
            "instance {at}: memory, KiB: {memory}; descriptors: {descriptors}; threads: {threads}; tasks: {tasks}"
        );
        assert!(!memory.exceeds(0.1, 2048.0), "instance {at}: memory {memory}");
        for (what, growth) in [("descriptors", descriptors), ("threads", threads), ("tasks", tasks)] {
            assert!(!growth.exceeds(0.2, 4.0), "instance {at}: {what} {growth}");
        }
    }
}

/// Opens connections to the instances themselves, asks once and closes them.
async fn connect(world: Arc<World>, record: Arc<Record>, count: Arc<AtomicU64>) {
    let addresses: Vec<_> = world.instances.iter().map(Instance::address).collect();
    let credential = &world.keys[0].credential;
    while !record.is_over() {
        for address in &addresses {
            ask(&channel(*address).await, credential).await;
            count.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Creates keys, uses each through every Envoy, and deletes it.
async fn create(world: Arc<World>, record: Arc<Record>, count: Arc<AtomicU64>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(!seed);
    let client = world.servers.lock().await.client().await.unwrap();
    let http = reqwest::Client::new();
    while !record.is_over() {
        let credential = keys::made_up(&mut rng);
        let (prefix, hash) = (&credential[..8], bcrypt::hash(&credential, COST).unwrap());
        let insert = "INSERT INTO api_keys (user_id, name, key_prefix, key_hash, is_active)
            VALUES (1, 'soak', $1, $2, true) RETURNING id::bigint";
        let id: i64 = client.query_one(insert, &[&prefix, &hash]).await.unwrap().get(0);
        for instance in &world.instances {
            let url = format!("{}/v1/models", instance.url);
            http.get(url).header("x-api-key", &credential).send().await.unwrap();
        }
        client.batch_execute(&format!("DELETE FROM api_keys WHERE id = {id}")).await.unwrap();
        count.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn growth_is_seen_and_noise_is_not() {
    let samples = |slope: f64| -> Vec<_> {
        let noise = |at: i32| f64::from(at * 7919 % 13);
        (0..100)
            .map(|at| Sample {
                seconds: f64::from(at),
                kib: 1000.0 + noise(at) + slope * f64::from(at),
                ..Sample::default()
            })
            .collect()
    };
    assert!(!Growth::of(&samples(0.0), |sample| sample.kib).exceeds(0.1, 0.0));
    let growth = Growth::of(&samples(10.0), |sample| sample.kib);
    assert!(growth.exceeds(0.1, 0.0) && (growth.hourly - 36_000.0).abs() < 500.0, "{growth}");
}
