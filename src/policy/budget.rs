//! Whether a request may spend: checks the key's own budget, and the budgets of a period that apply to the request.

use std::fmt;

use super::facts::Facts;
use crate::{
    attributes::body::NoName,
    record::{BudgetId, ChainMember, PeriodBudget, UnreadableBudget, loose_path::LoosePath},
};

/// What a budget of a period means for one request, for explanations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetBinding {
    /// `budgets.id`, if it could be read.
    pub id: Option<BudgetId>,
    /// Whether the request may be charged to the budget, so that the budget denies the request once it is spent.
    pub binds: bool,
    /// Whether the budget denies the request now.
    pub denies: bool,
    /// Why it binds the request or does not.
    pub why: String,
    /// What is spent of it.
    pub status: String,
}

/// Whether no budget that the request would be charged to denies it.
pub(super) fn passes(facts: &Facts<'_>) -> bool {
    let periods = &facts.record.period_budgets;
    !facts.record.budget.is_exhausted()
        && periods.unreadable.is_empty()
        && !periods.rows.iter().any(|budget| budget.denies(facts.now) && applies(budget, facts))
}

/// Describes the key's own budget, and names the budgets of a period that bind the request.
pub(super) fn seen(facts: &Facts<'_>) -> String {
    let bindings = bindings(facts);
    let binding: Vec<_> = bindings.iter().filter(|budget| budget.binds).map(BudgetBinding::name).collect();
    let periods = match (&bindings[..], &binding[..]) {
        ([], _) => "none".to_owned(),
        (_, []) => "none that binds this request".to_owned(),
        _ => binding.join(", "),
    };
    let others = facts.record.chain.as_ref().map_or_else(String::new, |chain| {
        let of = |member: &ChainMember| format!("key {} ({} cents)", member.id.0, member.spent_cents);
        format!(", together with {}", chain.others.iter().map(of).collect::<Vec<_>>().join(", "))
    });
    format!("{}{others}; budgets of a period: {periods}", facts.record.budget)
}

/// What each active budget of a period of the key means for the request.
pub fn bindings(facts: &Facts<'_>) -> Vec<BudgetBinding> {
    let periods = &facts.record.period_budgets;
    let readable = periods.rows.iter().map(|budget| BudgetBinding::of(budget, facts));
    readable.chain(periods.unreadable.iter().map(BudgetBinding::of_unreadable)).collect()
}

impl BudgetBinding {
    fn of(budget: &PeriodBudget, facts: &Facts<'_>) -> Self {
        let (path, model) = (path_match(budget, facts), model_match(budget, facts));
        let mut obstacles: Vec<String> = Vec::new();
        if !path.applies() {
            obstacles.push(path.to_string());
        }
        if !model.applies() {
            obstacles.push(model.to_string());
        }
        obstacles.extend(budget.why_it_never_denies(facts.now).map(str::to_owned));
        let binds = obstacles.is_empty();
        Self {
            id: Some(budget.id),
            binds,
            denies: binds && budget.denies(facts.now),
            why: if binds { format!("{path}; {model}") } else { obstacles.join("; ") },
            status: budget.status_at(facts.now),
        }
    }

    /// The intended limit is unknown, so the row denies every request.
    fn of_unreadable(budget: &UnreadableBudget) -> Self {
        let why = format!("{} is not {}, so nothing may be spent", budget.column, budget.expected);
        Self { id: budget.id, binds: true, denies: true, why, status: "unreadable".to_owned() }
    }

    fn name(&self) -> String {
        self.id.map_or_else(|| "unreadable".to_owned(), |BudgetId(id)| id.to_string())
    }
}

/// Whether the request may be charged to this budget. The body is read only if the budget is for some models only.
fn applies(budget: &PeriodBudget, facts: &Facts<'_>) -> bool {
    path_match(budget, facts).applies() && model_match(budget, facts).applies()
}

/// How a path relates to the endpoints of a budget.
enum PathMatch<'a> {
    /// The budget is for every path.
    Every,
    /// This entry is the path, or its end.
    Entry(&'a str),
    /// Servers read the path in different ways, so it could be any path: no path may avoid a budget.
    AnyPath,
    /// This entry is not a valid path. It could mean any path.
    InvalidEntry(&'a str),
    /// The path is none of the endpoints.
    Other,
}

impl PathMatch<'_> {
    fn applies(&self) -> bool {
        !matches!(self, Self::Other)
    }
}

impl fmt::Display for PathMatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every => f.write_str("it is for every path"),
            Self::Entry(entry) => write!(f, "the path matches {entry:?}"),
            Self::AnyPath => f.write_str("servers read the path in different ways"),
            Self::InvalidEntry(entry) => write!(f, "{entry:?} is not a path, so it means every path"),
            Self::Other => f.write_str("the path matches none of its allowed_endpoints"),
        }
    }
}

fn path_match<'a>(budget: &'a PeriodBudget, facts: &Facts<'_>) -> PathMatch<'a> {
    if budget.endpoints.is_empty() {
        return PathMatch::Every;
    }
    let Ok(path) = LoosePath::parse(facts.attributes.path) else { return PathMatch::AnyPath };
    let matches = budget.endpoints.iter().find_map(|entry| {
        let is_absolute = entry.starts_with('/');
        let slash = if is_absolute { "" } else { "/" };
        let Ok(endpoint) = LoosePath::parse(&format!("{slash}{entry}")) else {
            return Some(PathMatch::InvalidEntry(entry));
        };
        let matches = if is_absolute { path == endpoint } else { path.ends_with(&endpoint) };
        matches.then_some(PathMatch::Entry(entry))
    });
    matches.unwrap_or(PathMatch::Other)
}

/// How the models of a request relate to those of a budget.
enum ModelMatch<'a> {
    /// The budget is for every model.
    Every,
    /// This model is named, perhaps among others.
    Entry(&'a str),
    /// The models are unknown, and could be any.
    Unknown(NoName),
    /// The route leaves models to the upstream.
    Ignored,
    /// The request names none of the models.
    Other,
}

impl ModelMatch<'_> {
    fn applies(&self) -> bool {
        !matches!(self, Self::Ignored | Self::Other)
    }
}

impl fmt::Display for ModelMatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every => f.write_str("it is for every model"),
            Self::Entry(entry) => write!(f, "the request names the model {entry:?}"),
            Self::Unknown(error) => write!(f, "the request could name any model: {error}"),
            Self::Ignored => f.write_str("keystile.model leaves models to the upstream"),
            Self::Other => f.write_str("the request names none of its allowed_models"),
        }
    }
}

fn model_match<'a>(budget: &'a PeriodBudget, facts: &Facts<'_>) -> ModelMatch<'a> {
    if budget.models.is_empty() {
        return ModelMatch::Every;
    }
    if facts.route.model_ignored {
        return ModelMatch::Ignored;
    }
    let named = match facts.models() {
        Ok(named) => named,
        Err(error) => return ModelMatch::Unknown(error),
    };
    let is_named =
        |entry: &&String| named.iter().any(|model| entry.trim().eq_ignore_ascii_case(model.trim()));
    budget.models.iter().find(is_named).map_or(ModelMatch::Other, |entry| ModelMatch::Entry(entry))
}
