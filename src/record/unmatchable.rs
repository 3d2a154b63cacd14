//! Entries of lists that match no request, or every request, although their author meant some requests.

use EntryProblem::{MatchesEverything, MatchesNothing};

use super::{PeriodBudget, Restrictions, endpoint::Endpoint, loose_path::LoosePath, model::ModelPattern};

/// Why an entry does not match what its author meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryProblem {
    /// It matches no request.
    MatchesNothing(&'static str),
    /// It matches every request.
    MatchesEverything(&'static str),
}

const PLACEHOLDER: &str = "a placeholder such as {id}, <id> or :id is no wildcard; write * for one segment";
const SPACES: &str = "models are compared exactly, and the entry has spaces around it";
const NO_PATTERN: &str = "lists of budgets have whole names and no patterns; write each name";
const NO_PLACEHOLDER: &str = "lists of budgets have whole paths and no placeholders; write each path";
const EMPTY_MODEL: &str = "the entry is empty";
const NOT_A_PATH: &str =
    "the entry is not a path; write a path such as /v1/chat/completions, without a method";

/// The problems of the entries in a key's lists, by column.
pub fn of_key(allowed: &Restrictions) -> impl Iterator<Item = (&'static str, EntryProblem)> {
    let endpoints = allowed.endpoints.entries().iter().filter_map(key_endpoint);
    let models = allowed.models.entries().iter().filter_map(key_model);
    by_column(endpoints, models)
}

/// The problems of the entries in a budget's lists, by column.
pub fn of_budget(budget: &PeriodBudget) -> impl Iterator<Item = (&'static str, EntryProblem)> {
    let endpoints = budget.endpoints.iter().filter_map(|entry| budget_endpoint(entry));
    let models = budget.models.iter().filter_map(|entry| budget_model(entry));
    by_column(endpoints, models)
}

fn by_column(
    endpoints: impl Iterator<Item = EntryProblem>,
    models: impl Iterator<Item = EntryProblem>,
) -> impl Iterator<Item = (&'static str, EntryProblem)> {
    let endpoints = endpoints.map(|problem| ("allowed_endpoints", problem));
    endpoints.chain(models.map(|problem| ("allowed_models", problem)))
}

/// The problem of an entry of a key's `allowed_endpoints`.
fn key_endpoint(entry: &Endpoint) -> Option<EntryProblem> {
    let text = entry.to_string();
    text.split('/').any(is_placeholder).then_some(MatchesNothing(PLACEHOLDER))
}

/// The problem of an entry of a key's `allowed_models`.
fn key_model(entry: &ModelPattern) -> Option<EntryProblem> {
    let text = entry.to_string();
    // Spaces before a `*` are within a name.
    (text.trim() != text).then_some(MatchesNothing(SPACES))
}

/// The problem of an entry of a budget's `allowed_endpoints`.
fn budget_endpoint(entry: &str) -> Option<EntryProblem> {
    let slash = if entry.starts_with('/') { "" } else { "/" };
    if entry.is_empty() || LoosePath::parse(&format!("{slash}{entry}")).is_err() {
        return Some(MatchesEverything(NOT_A_PATH));
    }
    let path = entry.split('?').next().unwrap_or_default();
    if path.split('/').any(is_placeholder) {
        return Some(MatchesNothing(NO_PLACEHOLDER));
    }
    path.contains('*').then_some(MatchesNothing(NO_PATTERN))
}

/// The problem of an entry of a budget's `allowed_models`.
fn budget_model(entry: &str) -> Option<EntryProblem> {
    if entry.trim().is_empty() {
        return Some(MatchesNothing(EMPTY_MODEL));
    }
    entry.contains('*').then_some(MatchesNothing(NO_PATTERN))
}

/// Whether a segment of a path stands for a parameter in some framework's notation. No client sends such a segment.
fn is_placeholder(segment: &str) -> bool {
    segment.contains(['{', '}', '<', '>']) || (segment.len() > 1 && segment.starts_with(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_of_a_key_with_a_placeholder_matches_nothing() {
        for (entry, expected) in [
            ("/v1/chat/*", None),
            ("POST /v1/**", None),
            ("/**", None),
            ("/v1/models/gemini:generate", None),
            ("/v1/agents/{agent_id}/chat", Some(MatchesNothing(PLACEHOLDER))),
            ("GET /v1/agents/<int:id>", Some(MatchesNothing(PLACEHOLDER))),
            ("/v1/agents/:id", Some(MatchesNothing(PLACEHOLDER))),
        ] {
            assert_eq!(key_endpoint(&entry.parse().expect("an endpoint")), expected, "{entry}");
        }
    }

    #[test]
    fn model_of_a_key_with_spaces_around_it_matches_nothing() {
        for (entry, expected) in [
            ("gpt-4o", None),
            ("gpt-4*", None),
            ("my model", None),
            (" gpt-4o", Some(MatchesNothing(SPACES))),
            ("gpt-4o ", Some(MatchesNothing(SPACES))),
        ] {
            assert_eq!(key_model(&entry.parse().expect("a model")), expected, "{entry:?}");
        }
    }

    #[test]
    fn endpoint_of_a_budget_is_a_whole_path() {
        for (entry, expected) in [
            ("/v1/chat/completions", None),
            ("chat/completions", None),
            ("chat/completions?x=*", None),
            ("/", None),
            ("/v1/*", Some(MatchesNothing(NO_PATTERN))),
            ("/v1/**", Some(MatchesNothing(NO_PATTERN))),
            ("/v1/agents/{id}", Some(MatchesNothing(NO_PLACEHOLDER))),
            ("", Some(MatchesEverything(NOT_A_PATH))),
            ("POST /v1/chat", Some(MatchesEverything(NOT_A_PATH))),
            ("https://api.example.com/v1/chat", Some(MatchesEverything(NOT_A_PATH))),
        ] {
            assert_eq!(budget_endpoint(entry), expected, "{entry:?}");
        }
    }

    #[test]
    fn model_of_a_budget_is_a_whole_name() {
        for (entry, expected) in [
            ("gpt-4o", None),
            (" GPT-4o ", None),
            ("gpt-4*", Some(MatchesNothing(NO_PATTERN))),
            (" ", Some(MatchesNothing(EMPTY_MODEL))),
        ] {
            assert_eq!(budget_model(entry), expected, "{entry:?}");
        }
    }
}
