//! Counts rows with the same finding, and keeps the ids of some of them.

use std::collections::{BTreeMap, BTreeSet};

use super::kind::FindingKind;
use crate::findings::{Finding, Location, Severity};

/// The ids that a finding shows.
const EXAMPLES: usize = 5;

/// Findings about rows, counted.
#[derive(Default)]
pub(super) struct Tally {
    rows: BTreeMap<Observation, Rows>,
}

/// What was found in a row.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Observation {
    pub(super) kind: FindingKind,
    pub(super) severity: Severity,
    pub(super) table: &'static str,
    pub(super) column: String,
    pub(super) detail: String,
}

/// The rows with one observation.
#[derive(Default)]
struct Rows {
    ids: BTreeSet<i64>,
    count: u64,
}

impl Tally {
    /// Adds a row that is seen once. `id` is None if it cannot be shown.
    pub(super) fn add(&mut self, observation: Observation, id: Option<i64>) {
        let rows = self.rows.entry(observation).or_default();
        rows.count += 1;
        if rows.ids.len() < EXAMPLES {
            rows.ids.extend(id);
        }
    }

    /// Adds a row that may be seen several times.
    pub(super) fn add_once(&mut self, observation: Observation, id: i64) {
        let rows = self.rows.entry(observation).or_default();
        rows.count += u64::from(rows.ids.insert(id));
    }

    pub(super) fn findings(self) -> Vec<Finding> {
        let finding = |(observation, rows): (Observation, Rows)| {
            let Observation { kind, severity, table, column, detail } = observation;
            let location = Location::column(table, column);
            Finding {
                count: Some(rows.count),
                examples: rows.ids.into_iter().take(EXAMPLES).map(|id| id.to_string()).collect(),
                ..kind.finding(severity, location, &detail)
            }
        };
        self.rows.into_iter().map(finding).collect()
    }
}
