//! The writer with a model of a database that refuses rows, fails and loses answers.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard};

use proptest::prelude::*;
use time::OffsetDateTime;

use super::*;

/// A database as the writer sees it.
#[derive(Debug, Clone, Default)]
struct Model(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    totals: HashMap<i64, u64>,
    /// Rows that no statement may touch.
    refused: HashSet<i64>,
    /// Rows that another application has locked.
    locked: HashSet<i64>,
    /// Whether every statement is refused, as without the right to write.
    refuses_all: bool,
    /// The faults of the next statements. Later ones succeed.
    faults: Vec<Fault>,
    /// Whether the transactions whose answer was lost were committed.
    lost: HashMap<String, bool>,
    statements: usize,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    Unreachable,
    /// The answer is lost, after the commit or before it.
    Lost {
        was_committed: bool,
    },
    /// The outcome of a transaction is not known yet.
    Unknown,
}

impl Model {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

/// Why the model did not write.
#[derive(Debug, Clone, Copy, thiserror::Error)]
enum ModelError {
    #[error("the database refuses")]
    Refused,
    #[error("unavailable")]
    Unavailable,
}

impl WriteError for ModelError {
    fn cause(&self) -> crate::dependencies::Cause {
        crate::dependencies::Cause::Refused
    }

    fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused)
    }
}

impl UsageStore for Model {
    type Error = ModelError;

    async fn write_usage(&self, batch: &Batch) -> WriteOutcome<ModelError> {
        // A statement takes its time, so that a pause between two tries is one.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let state = &mut *self.state();
        state.statements += 1;
        let fault = state.faults.pop().unwrap_or(Fault::None);
        if matches!(fault, Fault::Unreachable | Fault::Unknown) {
            return WriteOutcome::Failed(ModelError::Unavailable);
        }
        if state.refuses_all || batch.keys().any(|key| state.refused.contains(&key.0)) {
            return WriteOutcome::Failed(ModelError::Refused);
        }
        if batch.keys().any(|key| state.locked.contains(&key.0)) {
            return WriteOutcome::Failed(ModelError::Unavailable);
        }
        if !matches!(fault, Fault::Lost { was_committed: false }) {
            for (key, used) in batch {
                *state.totals.entry(key.0).or_default() += used.requests;
            }
        }
        match fault {
            Fault::Lost { was_committed } => {
                let transaction = state.statements.to_string();
                state.lost.insert(transaction.clone(), was_committed);
                WriteOutcome::Unknown { transaction, error: ModelError::Unavailable }
            }
            _ => WriteOutcome::Done,
        }
    }

    async fn was_written(&self, transaction: &str) -> Result<Option<bool>, ModelError> {
        let state = &mut *self.state();
        match state.faults.pop() {
            Some(Fault::Unreachable) => Err(ModelError::Unavailable),
            Some(Fault::Unknown) => Ok(None),
            _ => Ok(Some(state.lost[transaction])),
        }
    }
}

struct Bench {
    usage: Usage,
    model: Model,
    metrics: Metrics,
    writer: UsageWriter<Model>,
}

impl Bench {
    fn new() -> Self {
        let metrics = Metrics::new().expect("builds");
        let (usage, model) = (Usage::new(true, &metrics), Model::default());
        let writer = UsageWriter::new(usage.clone(), model.clone(), TICK, &metrics);
        Self { usage, model, metrics, writer }
    }

    fn count(&self, key: i64) {
        self.usage.count(KeyId(key), "", OffsetDateTime::UNIX_EPOCH);
    }

    fn lost(&self) -> u64 {
        let text = self.metrics.render();
        let line = text.lines().find_map(|line| line.strip_prefix("keystile_usage_lost_total "));
        line.map_or(0, |count| count.parse().expect("a count"))
    }

    async fn passes(&mut self, count: usize) {
        for _ in 0..count {
            self.writer.write(Pass::Regular).await;
            tokio::time::sleep(TICK).await;
        }
    }
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        3 => Just(Fault::None),
        1 => Just(Fault::Unreachable),
        1 => any::<bool>().prop_map(|was_committed| Fault::Lost { was_committed }),
        1 => Just(Fault::Unknown),
    ]
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("builds").block_on(test)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever fails and whichever rows refuse: each count is written once, or the row refuses it.
    #[test]
    fn every_count_is_written_once_or_its_row_refused_it(
        keys in 1..1500_i64,
        refused in proptest::collection::hash_set(0..1500_i64, 0..12),
        locked in proptest::collection::hash_set(0..1500_i64, 0..3),
        rounds in proptest::collection::vec((0..1500_i64, proptest::collection::vec(fault(), 0..20)), 1..6),
    ) {
        run(async move {
            let mut bench = Bench::new();
            bench.model.state().refused = refused.clone();
            bench.model.state().locked = locked;
            let mut counted = HashMap::<i64, u64>::new();
            for (first, faults) in rounds {
                bench.model.state().faults = faults;
                for key in (first..first + keys).map(|key| key % 1500) {
                    bench.count(key);
                    *counted.entry(key).or_default() += 1;
                }
                bench.passes(2).await;
            }
            bench.model.state().faults.clear();
            bench.model.state().locked.clear();
            bench.writer.finish(10 * TICK).await;
            let refused_counts: u64 =
                counted.iter().filter(|(key, _)| refused.contains(key)).map(|(_, count)| count).sum();
            counted.retain(|key, _| !refused.contains(key));
            prop_assert_eq!(&bench.model.state().totals, &counted);
            prop_assert_eq!((bench.writer.pending(), bench.lost()), (0, refused_counts));
            Ok(())
        })?;
    }
}

#[test]
fn row_that_refuses_is_abandoned_after_its_tries_and_delays_no_other_row() {
    run(async {
        let mut bench = Bench::new();
        bench.model.state().refused.insert(7);
        for second in 0..40_u64 {
            for key in 0..1000 {
                bench.count(key);
            }
            let before = bench.model.state().statements;
            bench.passes(1).await;
            assert_eq!(bench.model.state().totals[&8], second + 1, "at once");
            let statements = bench.model.state().statements - before;
            assert!(second == 0 || statements <= 4, "{statements} statements: it is tried alone");
        }
        let (lost, pending) = (bench.lost(), bench.writer.pending());
        assert!((31..35).contains(&lost), "abandoned after 31 s: {lost}");
        assert_eq!(lost + pending, 40);
    });
}

#[test]
fn row_that_takes_its_count_again_gets_all_of_it() {
    run(async {
        let mut bench = Bench::new();
        bench.model.state().refused.insert(7);
        bench.count(7);
        bench.count(8);
        bench.passes(3).await;
        bench.model.state().refused.clear();
        bench.count(7);
        bench.passes(5).await;
        assert_eq!(bench.model.state().totals, HashMap::from([(7, 2), (8, 1)]));
        assert_eq!(bench.writer.refusals.some_ids(), [0; 0]);
    });
}

#[test]
fn nothing_is_abandoned_while_no_row_can_be_written() {
    run(async {
        let mut bench = Bench::new();
        bench.model.state().refused = (0..300).collect();
        (0..300).for_each(|key| bench.count(key));
        bench.passes(120).await;
        assert_eq!(
            (bench.lost(), bench.writer.pending()),
            (0, 300),
            "a trigger that refuses all may be mended"
        );
        bench.model.state().refused.clear();
        bench.writer.finish(TICK).await;
        assert_eq!(bench.writer.pending(), 0);
    });
}

#[test]
fn many_rows_that_refuse_are_found_a_bounded_number_of_statements_at_a_time() {
    run(async {
        let mut bench = Bench::new();
        bench.model.state().refused = (0..2000).filter(|key| key % 2 == 0).collect();
        (0..2000).for_each(|key| bench.count(key));
        for _ in 0..200 {
            let before = bench.model.state().statements;
            bench.passes(1).await;
            assert!(bench.model.state().statements - before <= 3 * FAILURES + 2000 / BATCH);
        }
        assert_eq!(bench.model.state().totals.len(), 1000);
    });
}

#[test]
fn failure_of_the_database_is_no_fault_of_a_row() {
    run(async {
        let mut bench = Bench::new();
        (0..2000).for_each(|key| bench.count(key));
        bench.model.state().faults = vec![Fault::Unreachable; 40];
        for _ in 0..20 {
            let before = bench.model.state().statements;
            bench.passes(1).await;
            assert!(bench.model.state().statements - before <= 2, "nothing is split");
        }
        assert_eq!(bench.writer.refusals.some_ids(), [0; 0]);
        bench.model.state().refuses_all = true;
        bench.writer.finish(2 * TICK).await;
        assert_eq!((bench.writer.pending(), bench.lost()), (2000, 0), "a right may be missing");
        bench.model.state().refuses_all = false;
        bench.writer.finish(TICK).await;
        assert_eq!(bench.model.state().totals.len(), 2000);
    });
}
