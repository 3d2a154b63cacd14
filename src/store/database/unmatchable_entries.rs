//! Reports entries of lists that match no request, or every request: counted at each read of their key, logged once.

use std::collections::HashSet;

use metrics::Counter;
use parking_lot::Mutex;
use tracing::warn;

use crate::{
    metrics::Metrics,
    record::{
        KeyRecord,
        unmatchable::{
            self,
            EntryProblem::{MatchesEverything, MatchesNothing},
        },
    },
};

/// The rows that are remembered as logged. Further ones are only counted.
const LOGGED: usize = 1000;

/// The metric, and the rows that were logged: table, id and column.
pub(super) struct UnmatchableEntries {
    counter: Counter,
    logged: Mutex<HashSet<(&'static str, i64, &'static str)>>,
}

impl UnmatchableEntries {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self { counter: metrics.unmatchable_entries(), logged: Mutex::default() }
    }

    /// Counts the entries of a key and its budgets.
    pub(super) fn report(&self, record: &KeyRecord) {
        let own = unmatchable::of_key(&record.allowed);
        let own = own.map(|(column, problem)| (("api_keys", record.id.0, column), problem));
        let budgets = record.period_budgets.rows.iter().flat_map(|budget| {
            unmatchable::of_budget(budget)
                .map(move |(column, problem)| (("budgets", budget.id.0, column), problem))
        });
        for (place, problem) in own.chain(budgets) {
            self.counter.increment(1);
            let mut logged = self.logged.lock();
            if logged.len() < LOGGED && logged.insert(place) {
                let (table, id, column) = place;
                let (matches, reason) = match problem {
                    MatchesNothing(reason) => ("nothing", reason),
                    MatchesEverything(reason) => ("everything", reason),
                };
                warn!(table, id, column, matches, reason, "an entry does not match what its author meant");
            }
        }
    }
}
