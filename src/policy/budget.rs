//! Whether a request may spend: the key's own budget, and those of a period that it is about.

use super::facts::Facts;
use crate::record::{PeriodBudget, loose_path::LoosePath};

/// Whether nothing that the request would be charged to stands against it.
pub(super) fn passes(facts: &Facts<'_>) -> bool {
    let periods = &facts.record.period_budgets;
    !facts.record.budget.is_exhausted()
        && periods.unreadable.is_empty()
        && !periods.rows.iter().any(|budget| budget.denies(facts.now) && is_about(budget, facts))
}

/// The key's own budget, and each of a period that the request may be charged to.
pub(super) fn seen(facts: &Facts<'_>) -> String {
    let periods = &facts.record.period_budgets;
    let read = periods.rows.iter().map(|budget| {
        let elsewhere = if is_about(budget, facts) { "" } else { ", not for this request" };
        format!("; {}{elsewhere}", budget.seen_at(facts.now))
    });
    let unreadable = periods.unreadable.iter().map(|budget| format!("; {budget}, so none is left"));
    format!("{}{}", facts.record.budget, read.chain(unreadable).collect::<String>())
}

/// Whether the request may be charged to this budget. The body is looked at for those of some
/// models only.
fn is_about(budget: &PeriodBudget, facts: &Facts<'_>) -> bool {
    concerns_path(&budget.endpoints, facts.attributes.path) && concerns_model(&budget.models, facts)
}

/// A path that servers read in different ways may be any: it must be no way around a budget. Neither may an entry
/// that is no path.
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

/// A model that nobody can see may be any. A route without models leaves them to the upstream.
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
