//! Everything that Keystile rests on fails, and an oracle judges each answer.
//!
//! Three real Envoys with an instance each, Postgres with a standby, and Redis with a replica are under steady load, while
//! keys are changed and a seeded schedule of faults happens. The oracle knows when changes were committed, and nothing of
//! the code.
//!
//! `KEYSTILE_TEST_SEED` and `KEYSTILE_TEST_SECONDS` choose the seed and the time. Every fault happens once before one
//! happens again, so a short run has some of them.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

use faults::Fault;
use keys::{LIMIT, Role};
use load::{Asked, Record};
use oracle::Minutes;
use report::{Memory, Row, Times};
use world::World;

mod changes;
mod faults;
mod keys;
mod load;
mod oracle;
mod report;
mod soak;
mod world;

/// Within which everything is as before after a fault.
const RECOVERY: Duration = Duration::from_secs(45);
/// Without a failure for so long, everything is as before.
const STEADY: Duration = Duration::from_millis(1500);
/// A row of the table takes so long at most, so that a run ends in time.
const LONGEST: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_lets_a_wrong_key_in_or_calls_a_good_key_wrong() {
    let seed = variable("KEYSTILE_TEST_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let seconds = variable("KEYSTILE_TEST_SECONDS").unwrap_or(60);
    println!("KEYSTILE_TEST_SEED={seed} KEYSTILE_TEST_SECONDS={seconds}");
    let began = Instant::now();
    let fresh = usize::try_from(seconds).unwrap() * 4;
    let world = Arc::new(World::start(seed, 40, fresh, &[]).await);
    let record = Arc::new(Record::default());
    record.begin(&world, seed);
    tokio::spawn(changes::run(Arc::clone(&world), Arc::clone(&record), seed));
    wait_until_steady(&world, &record, began).await;
    record.take();
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut rows, mut counts, mut memory) = (Vec::new(), Counts::default(), Memory::default());
    println!("{}", report::HEAD);
    for fault in schedule(&mut rng) {
        if began.elapsed() + LONGEST > Duration::from_secs(seconds) {
            break;
        }
        let began = Instant::now();
        fault.happen(&world, &mut rng).await;
        let times = Times { began, ended: Instant::now() };
        wait_until_steady(&world, &record, times.ended).await;
        let asked = record.take();
        // A change that is under way holds the servers, and is noted before it leaves them.
        drop(world.servers.lock().await);
        counts.add(&asked, &world, fault, began);
        let row = Row::judge(fault, &world, &record, &memory, &asked, times);
        memory.note(fault, &asked);
        println!("{row}");
        if fault.spares_known_keys() {
            row.unavailable.iter().for_each(|case| println!("    {case}"));
        }
        rows.push(row);
    }
    record.end();
    println!("{} faults in {:.0?}", rows.len(), began.elapsed());
    let problems = [rows.iter().flat_map(problems).collect(), counts.problems()].concat();
    for (at, instance) in world.instances.iter().enumerate() {
        assert!(!instance.log().contains("panicked"), "instance {at}: {}", instance.log());
    }
    assert!(problems.is_empty(), "KEYSTILE_TEST_SEED={seed}:\n{}", problems.join("\n"));
}

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is {value}, and no number")))
}

/// No fault first; then all of them in an order of the run's own, again and again.
fn schedule(rng: &mut StdRng) -> impl Iterator<Item = Fault> + use<> {
    let mut rng = StdRng::from_rng(rng);
    let rounds = std::iter::repeat_with(move || {
        let mut all = faults::ALL;
        all.shuffle(&mut rng);
        all
    });
    std::iter::once(Fault::None).chain(rounds.flatten())
}

/// Waits until good keys have been answered for a while, and every feed is up.
async fn wait_until_steady(world: &World, record: &Record, since: Instant) {
    let mut lost = Instant::now();
    let mut seen = 0;
    while lost.elapsed() < STEADY {
        assert!(since.elapsed() < RECOVERY, "not recovered; the instances say:\n{}", last_lines(world));
        tokio::time::sleep(Duration::from_millis(50)).await;
        let failed = record.with_asked_from(seen, |asked| {
            seen += asked.len();
            asked.iter().any(|asked| asked.is_good(world) && !matches!(asked.status, 200 | 401 | 403 | 429))
        });
        if failed || record.last_down(lost).is_some() {
            lost = Instant::now();
        }
    }
}

fn last_lines(world: &World) -> String {
    let logs = world.instances.iter().map(|instance| {
        let log = instance.log();
        let lines: Vec<_> = log.lines().rev().take(12).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    });
    logs.collect::<Vec<_>>().join("\n---\n")
}

/// What a fault may not come to.
fn problems(row: &Row) -> Vec<String> {
    let named = |what: &str, cases: &[String]| {
        let few = cases.iter().take(5).cloned().collect::<Vec<_>>().join("\n    ");
        format!("{}: {} {what}:\n    {few}", row.fault.name(), cases.len())
    };
    let mut problems = Vec::new();
    if !row.wrong_allows.is_empty() {
        problems.push(named("wrong allows", &row.wrong_allows));
    }
    if !row.wrong_denials.is_empty() {
        problems.push(named("wrong denials", &row.wrong_denials));
    }
    // One in a hundred may be late on a busy machine.
    if row.fault.spares_known_keys() && row.unavailable.len() * 100 > row.requests {
        problems.push(named("known keys without an answer", &row.unavailable));
    }
    problems
}

/// How many requests of each limited key were allowed in each minute, and which minutes a fault touched.
#[derive(Default)]
struct Counts {
    minutes: std::collections::BTreeMap<usize, Minutes>,
    loosened: BTreeSet<u64>,
}

impl Counts {
    fn add(&mut self, asked: &[Asked], world: &World, fault: Fault, began: Instant) {
        for asked in asked {
            let Some(at) = asked.key.filter(|at| world.keys[*at].role == Role::Limited) else { continue };
            if asked.status == 200 {
                self.minutes.entry(at).or_default().count(asked.clock.0, asked.clock.1);
            }
        }
        let clock = asked.iter().map(|asked| asked.clock.1 / 60_000).max();
        if let (true, Some(last)) = (fault.loosens_limits(), clock) {
            let first = last - began.elapsed().as_secs().div_ceil(60);
            self.loosened.extend(first..=last);
        }
    }

    /// A limit is passed in no minute that no fault touched, and twofold in none.
    fn problems(&self) -> Vec<String> {
        let passed = self.minutes.iter().flat_map(|(key, minutes)| {
            minutes.iter().filter_map(move |(minute, count)| {
                let most = if self.loosened.contains(&minute) { 2 * LIMIT } else { LIMIT };
                (count > most).then(|| format!("key {key}: {count} requests in minute {minute}, of {most}"))
            })
        });
        passed.collect()
    }
}
