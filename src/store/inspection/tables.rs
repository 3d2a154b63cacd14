//! The tables: whether those that Keystile needs are there, and have their indexes.

use super::{FindingKind, Inspector};
use crate::{
    findings::{Location, Severity},
    store::{
        StoreError,
        schema::{BUDGET_COLUMNS, REQUIRED},
    },
};

impl Inspector<'_> {
    /// Whether there are the tables and columns without which nothing else can be examined. Reports those that are
    /// missing.
    pub(super) fn has_tables(&mut self) -> bool {
        for (table, required) in REQUIRED {
            if !self.schema.has_table(table) {
                self.report(FindingKind::TableMissing, Severity::Error, Location::table(*table), "");
                continue;
            }
            // Without `is_active`, every row counts as inactive.
            let needed = [required, &["is_active"][..]].concat();
            for column in self.schema.missing(table, &needed) {
                let location = Location::column(*table, column);
                self.report(FindingKind::ColumnMissing, Severity::Error, location, "");
            }
        }
        self.inspection.findings.is_empty()
    }

    pub(super) async fn examine_tables(&mut self) -> Result<(), StoreError> {
        let missing = self.schema.missing("budgets", &BUDGET_COLUMNS);
        // A table with few of them is another application's.
        if self.schema.has_table("budgets") && (1..=2).contains(&missing.len()) {
            let (kind, location) = (FindingKind::BudgetsIgnored, Location::table("budgets"));
            self.report(kind, Severity::Warning, location, &missing.join(", "));
        }
        self.examine_index("api_keys", "key_prefix").await?;
        self.examine_index("users", "id").await
    }

    pub(super) async fn examine_index(&mut self, table: &str, column: &str) -> Result<(), StoreError> {
        let statement = self.database.statements().index_on(&self.schema, table, column);
        if self.query(statement).await?.is_empty() {
            let location = Location::column(table, column);
            self.report(FindingKind::IndexMissing, Severity::Warning, location, "");
        }
        Ok(())
    }
}
