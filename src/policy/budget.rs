//! Whether a request may spend: checks the key's own budget, and the budgets of a period that apply to the request.

use super::facts::Facts;
use crate::record::{PeriodBudget, loose_path::LoosePath};

/// Whether no budget that the request would be charged to denies it.
pub(super) fn passes(facts: &Facts<'_>) -> bool {
    let periods = &facts.record.period_budgets;
    !facts.record.budget.is_exhausted()
        && periods.unreadable.is_empty()
        && !periods.rows.iter().any(|budget| budget.denies(facts.now) && is_about(budget, facts))
}

/// Describes the key's own budget, and every budget of a period with a note whether it applies to the request.
pub(super) fn seen(facts: &Facts<'_>) -> String {
    let periods = &facts.record.period_budgets;
    let read = periods.rows.iter().map(|budget| {
        let elsewhere = if is_about(budget, facts) { "" } else { ", not for this request" };
        format!("; {}{elsewhere}", budget.seen_at(facts.now))
    });
    let unreadable = periods.unreadable.iter().map(|budget| format!("; {budget}, so none is left"));
    format!("{}{}", facts.record.budget, read.chain(unreadable).collect::<String>())
}

/// Whether the request may be charged to this budget. The body is read only if the budget is for some models only.
fn is_about(budget: &PeriodBudget, facts: &Facts<'_>) -> bool {
    concerns_path(&budget.endpoints, facts.attributes.path) && concerns_model(&budget.models, facts)
}

/// Whether the budget may apply to this path. A path that servers read in different ways could be any path, so the
/// budget applies to it: no path may avoid a budget. The same holds for an entry that is not a valid path.
fn concerns_path(endpoints: &[String], path: &str) -> bool {
    if endpoints.is_empty() {
        return true;
    }
    let Ok(path) = LoosePath::parse(path) else { return true };
    endpoints.iter().any(|endpoint| {
        let is_absolute = endpoint.starts_with('/');
        let slash = if is_absolute { "" } else { "/" };
        let Ok(endpoint) = LoosePath::parse(&format!("{slash}{endpoint}")) else { return true };
        if is_absolute { path == endpoint } else { path.ends_with(&endpoint) }
    })
}

/// Whether the budget may apply to the request's model. An unknown model could be any model. On a route that ignores
/// models, the upstream enforces them.
fn concerns_model(models: &[String], facts: &Facts<'_>) -> bool {
    if models.is_empty() {
        return true;
    }
    if facts.route.model_ignored {
        return false;
    }
    let Ok(model) = facts.attributes.body.model() else { return true };
    models.iter().any(|name| name.trim().eq_ignore_ascii_case(model.trim()))
}
