//! Every row of `budgets`, decoded as a look-up decodes it.

use std::collections::HashSet;

use super::{
    FindingKind, Inspector,
    batches::{Cursor, Scan},
    keys::{entry_kind, observation},
    tally::Tally,
};
use crate::{
    findings::Severity,
    record::unmatchable,
    store::{Row, StoreError, decode::budgets},
};

/// Rows from which on a budget without an index costs each look-up too much.
const LARGE: u64 = 1000;

impl Inspector<'_> {
    pub(super) async fn examine_budgets(&mut self) -> Result<(), StoreError> {
        let from = format!("{} b", self.schema.relation("budgets"));
        let columns = format!("{}, {}", self.has_owner(), self.schema.select("budgets", budgets::COLUMNS));
        let scan = Scan { table: "budgets", alias: "b", from: &from, columns: &columns };
        let (mut cursor, mut tally) = (Cursor::default(), Tally::default());
        let read = loop {
            let rows = match cursor.next(self, &scan).await {
                Ok(Some(rows)) => rows,
                end => break end.map(drop),
            };
            self.inspection.budgets += rows.len() as u64;
            for row in rows {
                self.examine_budget(row, &mut tally);
            }
            (self.progress)(self.inspection.keys + self.inspection.budgets);
        };
        self.inspection.findings.extend(tally.findings());
        read?;
        if self.inspection.budgets > LARGE {
            self.examine_index("budgets", "user_id").await?;
            self.examine_index("budgets", "api_key_id").await?;
        }
        Ok(())
    }

    /// An expression for whether the key of the budget exists, or the user where it names no key: 1 or 0.
    fn has_owner(&self) -> String {
        let schema = &self.schema;
        let (key, user) = (schema.name("budgets", "api_key_id"), schema.name("budgets", "user_id"));
        let exists = |table: &str, owner: &str| {
            let (relation, id) = (schema.relation(table), schema.name(table, "id"));
            format!("EXISTS (SELECT 1 FROM {relation} o WHERE o.{id} = b.{owner})")
        };
        format!(
            "CASE WHEN (b.{key} IS NOT NULL AND {}) OR (b.{key} IS NULL AND {}) THEN '1' ELSE '0' END",
            exists("api_keys", &key),
            exists("users", &user),
        )
    }

    fn examine_budget(&self, mut row: Row, tally: &mut Tally) {
        let values = row.split_off(1);
        let has_owner = row.first().is_some_and(|owner| owner.as_deref() == Some("1"));
        let (budget, problems) = budgets::decode_leniently(values);
        let has_id = problems.iter().all(|problem| problem.column != "id");
        let id = budget.as_ref().map(|budget| budget.id.0).filter(|_| has_id);
        let severity = if has_owner { Severity::Error } else { Severity::Note };
        let mut add = |kind, severity, column: &str, detail: &str| {
            tally.add(observation(kind, severity, "budgets", column, detail), id);
        };
        for problem in &problems {
            let expected = format!("it should be {}", problem.expected);
            add(FindingKind::BudgetUndecodable, severity, problem.column, &expected);
        }
        let Some(budget) = budget else { return };
        if !has_owner {
            add(FindingKind::BudgetWithoutOwner, Severity::Note, "api_key_id", "");
            return;
        }
        // Then it matters little what it matches.
        if budget.why_it_never_denies(self.now).is_some() {
            return;
        }
        if budget.limit_cents <= 0 {
            add(FindingKind::LimitZero, Severity::Warning, "limit_cents", "");
        }
        // Each problem once for a row.
        for (column, problem) in unmatchable::of_budget(&budget).collect::<HashSet<_>>() {
            let (kind, why) = entry_kind(problem);
            add(kind, Severity::Error, column, why);
        }
    }
}
