//! Decodes the budgets of a key. A look-up selects them as one JSON value in the key's row, so that it is one statement.

use super::{
    timestamp,
    value::{self, Expectation},
};
use crate::{
    record::{BudgetId, Expiry, PeriodBudget, PeriodBudgets, SharedUsage, UnreadableBudget},
    store::{Row, SqlValue},
};

/// The columns of a budget, in the order in which they are selected.
pub(crate) const COLUMNS: [&str; 10] = [
    "id",
    "limit_cents",
    "current_usage_cents",
    "period_start",
    "period_end",
    "is_active",
    "auto_renew",
    "enforce_hard_limit",
    "allowed_models",
    "allowed_endpoints",
];

/// The columns of a budget of another key of the chain, in the order in which they are selected.
pub(crate) const SHARED_COLUMNS: [&str; 4] = ["id", "current_usage_cents", "period_start", "period_end"];

/// Decodes the JSON values: an array with an array of texts for each budget, and one for what other keys of the chain
/// have used of them, whose rows begin with the id of the budget. An unreadable budget is not the same as no budget: it
/// denies the key.
pub(super) fn decode(json: Option<&str>, shared: Option<&str>) -> PeriodBudgets {
    let rows: Result<Vec<Vec<SqlValue>>, _> = serde_json::from_str(json.unwrap_or("[]"));
    let mut budgets = PeriodBudgets::default();
    let Ok(rows) = rows else {
        budgets.unreadable.push(UnreadableBudget { id: None, column: "id", expected: "JSON" });
        return budgets;
    };
    for values in rows {
        match (BudgetReader { values: &values }).decode() {
            Ok(budget) => budgets.rows.extend(budget),
            Err(unreadable) => budgets.unreadable.push(unreadable),
        }
    }
    if let Err(unreadable) = add_shared(&mut budgets.rows, shared.unwrap_or("[]")) {
        budgets.unreadable.push(unreadable);
    }
    budgets.rows.sort_by_key(|budget| budget.id);
    budgets.unreadable.sort_by_key(|budget| budget.id);
    budgets
}

/// Adds what other keys of the chain have used to the budgets.
fn add_shared(budgets: &mut [PeriodBudget], json: &str) -> Result<(), UnreadableBudget> {
    let unreadable = |id, column, expected| UnreadableBudget { id, column, expected };
    let rows: Vec<[SqlValue; 1 + SHARED_COLUMNS.len()]> =
        serde_json::from_str(json).map_err(|_| unreadable(None, "id", "JSON"))?;
    for [budget, id, used, start, end] in rows {
        let number = |text: &SqlValue| text.as_deref().and_then(|id| value::integer(id).ok()).map(BudgetId);
        let (budget, id) = (number(&budget), number(&id));
        let time = |text: &SqlValue| text.as_deref().map(timestamp::expiry).transpose();
        let used = used.as_deref().map(value::number).transpose();
        let shared = SharedUsage {
            used_cents: used.map_err(|expected| unreadable(id, SHARED_COLUMNS[1], expected))?.unwrap_or(0.0),
            start: time(&start)
                .map_err(|expected| unreadable(id, SHARED_COLUMNS[2], expected))?
                .unwrap_or(Expiry::Always),
            end: time(&end)
                .map_err(|expected| unreadable(id, SHARED_COLUMNS[3], expected))?
                .unwrap_or(Expiry::Never),
            id: id.ok_or_else(|| unreadable(None, SHARED_COLUMNS[0], "a value"))?,
        };
        // Without one, the row of this key is inactive.
        if let Some(of) = budgets.iter_mut().find(|row| Some(row.id) == budget) {
            of.shared.push(shared);
        }
    }
    Ok(())
}

/// Decodes one budget, and returns every value that cannot be decoded. Without a budget, the row is inactive.
pub(crate) fn decode_leniently(mut values: Row) -> (Option<PeriodBudget>, Vec<UnreadableBudget>) {
    let mut problems = Vec::new();
    // Each turn replaces one value.
    for _ in 0..=COLUMNS.len() {
        let problem = match (BudgetReader { values: &values }).decode() {
            Ok(budget) => return (budget, problems),
            Err(problem) => problem,
        };
        let placeholder = matches!(problem.column, "id" | "limit_cents").then(|| "1".to_owned());
        if let Some(at) = COLUMNS.iter().position(|column| *column == problem.column) {
            values[at] = placeholder;
        }
        problems.push(problem);
    }
    (None, problems)
}

struct BudgetReader<'a> {
    values: &'a [SqlValue],
}

impl BudgetReader<'_> {
    /// None when it is inactive. NULL means the default of the column.
    fn decode(&self) -> Result<Option<PeriodBudget>, UnreadableBudget> {
        if self.read("is_active", value::boolean)? == Some(false) {
            return Ok(None);
        }
        Ok(Some(PeriodBudget {
            id: BudgetId(self.required("id", value::integer)?),
            limit_cents: self.required("limit_cents", value::integer)?,
            used_cents: self.read("current_usage_cents", value::number)?.unwrap_or(0.0),
            start: self.read("period_start", timestamp::expiry)?.unwrap_or(Expiry::Always),
            end: self.read("period_end", timestamp::expiry)?.unwrap_or(Expiry::Never),
            renews: self.read("auto_renew", value::boolean)?.unwrap_or(true),
            is_hard: self.read("enforce_hard_limit", value::boolean)?.unwrap_or(true),
            models: self.read("allowed_models", value::list)?.unwrap_or_default(),
            endpoints: self.read("allowed_endpoints", value::list)?.unwrap_or_default(),
            shared: Vec::new(),
        }))
    }

    fn value(&self, column: &'static str) -> Option<&str> {
        let at = COLUMNS.iter().position(|known| *known == column)?;
        self.values.get(at)?.as_deref()
    }

    fn required<T>(
        &self,
        column: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Expectation>,
    ) -> Result<T, UnreadableBudget> {
        self.read(column, parse)?.ok_or_else(|| self.unreadable(column, "a value"))
    }

    fn read<T>(
        &self,
        column: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Expectation>,
    ) -> Result<Option<T>, UnreadableBudget> {
        self.value(column).map(parse).transpose().map_err(|expected| self.unreadable(column, expected))
    }

    fn unreadable(&self, column: &'static str, expected: Expectation) -> UnreadableBudget {
        let id = self.value("id").and_then(|id| value::integer(id).ok()).map(BudgetId);
        UnreadableBudget { id, column, expected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    /// The JSON of one budget: spent 50 of 100 cents, with some columns changed.
    fn json(changes: &[(&str, Option<&str>)]) -> String {
        let base =
            [("id", "3"), ("limit_cents", "100"), ("current_usage_cents", "50"), ("is_active", "true")];
        let value = |name: &str| match changes.iter().find(|(changed, _)| *changed == name) {
            Some((_, value)) => *value,
            None => base.iter().find(|(known, _)| *known == name).map(|(_, value)| *value),
        };
        serde_json::json!([COLUMNS.map(value)]).to_string()
    }

    fn decoded(changes: &[(&str, Option<&str>)]) -> PeriodBudgets {
        decode(Some(&json(changes)), None)
    }

    #[test]
    fn key_without_budgets_has_none() {
        for none in [None, Some("[]")] {
            assert_eq!(decode(none, none), PeriodBudgets::default());
        }
    }

    #[test]
    fn bare_budget_is_hard_renews_and_never_ends() {
        for flag in [Some("true"), None] {
            let budgets = decoded(&[("is_active", flag), ("current_usage_cents", None)]);
            let bare = PeriodBudget {
                id: BudgetId(3),
                limit_cents: 100,
                used_cents: 0.0,
                start: Expiry::Always,
                end: Expiry::Never,
                renews: true,
                is_hard: true,
                models: vec![],
                endpoints: vec![],
                shared: vec![],
            };
            assert_eq!(budgets, PeriodBudgets { rows: vec![bare], unreadable: vec![] });
        }
    }

    #[test]
    fn every_column_arrives_in_its_field() {
        let budgets = decoded(&[
            ("current_usage_cents", Some("12.5")),
            ("period_start", Some("2026-01-01T00:00:00")),
            ("period_end", Some("2026-02-01 00:00:00.25")),
            ("auto_renew", Some("0")),
            ("enforce_hard_limit", Some("f")),
            ("allowed_models", Some(r#"["o1"]"#)),
            ("allowed_endpoints", Some(r#"["/a", "/b"]"#)),
        ]);
        let [budget] = &budgets.rows[..] else { panic!("{budgets:?}") };
        assert_eq!((budget.id, budget.limit_cents, budget.used_cents), (BudgetId(3), 100, 12.5));
        assert_eq!(budget.start, Expiry::At(datetime!(2026-01-01 00:00 UTC)));
        assert_eq!(budget.end, Expiry::At(datetime!(2026-02-01 00:00:00.25 UTC)));
        assert!(!budget.renews && !budget.is_hard);
        assert_eq!((budget.models.len(), budget.endpoints.len()), (1, 2));
    }

    #[test]
    fn inactive_budget_is_ignored_with_any_other_values() {
        let inactive = decoded(&[("is_active", Some("0")), ("limit_cents", None)]);
        assert_eq!(inactive, PeriodBudgets::default());
    }

    #[test]
    fn undecodable_budget_is_reported_by_id_and_column() {
        for (column, value) in [
            ("id", None),
            ("id", Some("x")),
            ("limit_cents", None),
            ("limit_cents", Some("much")),
            ("current_usage_cents", Some("NaN")),
            ("period_start", Some("soon")),
            ("period_end", Some("")),
            ("is_active", Some("maybe")),
            ("is_active", Some("0.5")),
            ("auto_renew", Some("2")),
            ("enforce_hard_limit", Some("no")),
            ("allowed_models", Some("o1")),
            ("allowed_models", Some(r#""[]""#)),
            ("allowed_endpoints", Some("[1]")),
        ] {
            let PeriodBudgets { rows, unreadable } = decoded(&[(column, value)]);
            assert_eq!((rows.len(), unreadable.len()), (0, 1), "{column}: {value:?}");
            assert_eq!(unreadable[0].column, column);
            assert_eq!(unreadable[0].id, (column != "id").then_some(BudgetId(3)));
        }
        for broken in ["", "{}", "null", "[3]", "[[3]]", "[[null]]", "[[]]", "[[\"3\"]"] {
            let PeriodBudgets { rows, unreadable } = decode(Some(broken), None);
            assert_eq!((rows.len(), unreadable.len()), (0, 1), "{broken}");
        }
    }

    #[test]
    fn usage_of_other_keys_belongs_to_their_budget() {
        let end = "2026-02-01 00:00:00";
        let shared = serde_json::json!([
            ["3", "9", "40.5", null, end],
            ["4", "10", "7", null, null],
            ["3", "11", null, "2026-01-01", null],
        ]);
        let budgets = decode(Some(&json(&[])), Some(&shared.to_string()));
        let shared = |id, used_cents, start, end| SharedUsage { id: BudgetId(id), used_cents, start, end };
        let expected = [
            shared(9, 40.5, Expiry::Always, Expiry::At(datetime!(2026-02-01 00:00 UTC))),
            shared(11, 0.0, Expiry::At(datetime!(2026-01-01 00:00 UTC)), Expiry::Never),
        ];
        assert_eq!(budgets.rows[0].shared, expected);
        assert!(budgets.unreadable.is_empty());
    }

    #[test]
    fn usage_of_other_keys_that_cannot_be_read_denies() {
        for (broken, column) in [
            ("{}", "id"),
            (r#"[["3"]]"#, "id"),
            (r#"[["3",null,"1",null,null]]"#, "id"),
            (r#"[["3","9","much",null,null]]"#, "current_usage_cents"),
            (r#"[["3","9","1","soon",null]]"#, "period_start"),
            (r#"[["3","9","1",null,"later"]]"#, "period_end"),
        ] {
            let budgets = decode(Some(&json(&[])), Some(broken));
            assert_eq!(budgets.unreadable.len(), 1, "{broken}");
            assert_eq!(budgets.unreadable[0].column, column, "{broken}");
        }
    }
}
