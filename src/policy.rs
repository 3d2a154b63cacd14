//! The policy of a proven key: a list of pure checks that runs on every request and is never cached.
//!
//! `keystile explain` runs the same list.

use crate::{
    attributes::{Attributes, body::Models, route::NameSource},
    decision::Reason,
    record::{AllowList, path::NormalPath, rfc3339},
};

mod budget;
mod facts;

pub use budget::{BudgetBinding, bindings};
pub use facts::Facts;

/// One condition that can deny a proven key.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// A short name.
    pub name: &'static str,
    /// The reason for the denial of a request that does not pass.
    pub reason: Reason,
    /// Whether the request passes.
    pub passes: fn(&Facts<'_>) -> bool,
    /// Whether only the upstream enforces what the check is about, for explanations.
    pub is_left_to_upstream: fn(&Facts<'_>) -> bool,
    /// The values that the check compares, for explanations.
    pub looks_at: fn(&Facts<'_>) -> String,
}

/// Every check, in the order in which they run: first whether the key is valid, then whether it may be used for this
/// request, then whether it may spend.
pub const CHECKS: &[Check] = &[
    Check {
        name: "active",
        reason: Reason::Disabled,
        passes: |facts| facts.record.is_active && !facts.record.is_deleted,
        is_left_to_upstream: |_| false,
        looks_at: |facts| {
            let deleted = if facts.record.is_deleted { "; deleted" } else { "" };
            format!("is_active: {}{deleted}", facts.record.is_active)
        },
    },
    Check {
        name: "expiry",
        reason: Reason::Expired,
        passes: |facts| !facts.record.expiry.is_past(facts.now),
        is_left_to_upstream: |_| false,
        looks_at: |facts| {
            let now = facts.now.replace_nanosecond(0).unwrap_or(facts.now);
            let successor = facts.record.successor();
            let rotated = successor.map_or_else(String::new, |to| format!("; rotated to key {}", to.key.0));
            format!("expires_at: {}; now: {}{rotated}", facts.record.expiry, rfc3339(now))
        },
    },
    Check {
        name: "user",
        reason: Reason::UserInactive,
        passes: |facts| facts.record.user.is_active && !facts.record.user.lock.holds(facts.now),
        is_left_to_upstream: |_| false,
        looks_at: |facts| {
            format!("is_active: {}; locked: {}", facts.record.user.is_active, facts.record.user.lock)
        },
    },
    Check {
        name: "address",
        reason: Reason::IpNotAllowed,
        passes: address_passes,
        is_left_to_upstream: |_| false,
        looks_at: |facts| {
            let client = facts.attributes.client.map_or("unknown".to_owned(), |client| client.to_string());
            format!("client: {client}; allowed_ips: {}", facts.record.allowed.ips)
        },
    },
    Check {
        name: "endpoint",
        reason: Reason::EndpointNotAllowed,
        passes: endpoint_passes,
        is_left_to_upstream: |_| false,
        looks_at: |facts| {
            let Attributes { method, path, .. } = facts.attributes;
            format!("request: {method} {path}; allowed_endpoints: {}", facts.record.allowed.endpoints)
        },
    },
    Check {
        name: "model",
        reason: Reason::ModelNotAllowed,
        passes: model_passes,
        is_left_to_upstream: |facts| {
            facts.route.model_ignored && matches!(facts.record.allowed.models, AllowList::Only(_))
        },
        looks_at: |facts| {
            let models =
                facts.models().map_or_else(|error| format!("none ({error})"), |models| quoted(&models));
            let left =
                if facts.route.model_ignored { "; left to the upstream by keystile.model" } else { "" };
            format!("model: {models}; allowed_models: {}{left}", facts.record.allowed.models)
        },
    },
    Check {
        name: "scope",
        reason: Reason::ScopeMissing,
        passes: |facts| facts.route.scopes.iter().all(|needed| facts.record.scopes.contains(needed)),
        is_left_to_upstream: |_| false,
        looks_at: |facts| {
            format!("needed: {}; scopes: {}", list(&facts.route.scopes), list(&facts.record.scopes))
        },
    },
    Check {
        name: "chatbot",
        reason: Reason::ChatbotNotAllowed,
        passes: |facts| name_passes(facts, facts.route.chatbot.as_ref(), &facts.record.allowed.chatbots),
        is_left_to_upstream: |facts| is_left(facts.route.chatbot.as_ref(), &facts.record.allowed.chatbots),
        looks_at: |facts| {
            name_seen(facts, facts.route.chatbot.as_ref(), "chatbots", &facts.record.allowed.chatbots)
        },
    },
    Check {
        name: "agent",
        reason: Reason::AgentNotAllowed,
        passes: |facts| name_passes(facts, facts.route.agent.as_ref(), &facts.record.allowed.agents),
        is_left_to_upstream: |facts| is_left(facts.route.agent.as_ref(), &facts.record.allowed.agents),
        looks_at: |facts| {
            name_seen(facts, facts.route.agent.as_ref(), "agents", &facts.record.allowed.agents)
        },
    },
    Check {
        name: "extract template",
        reason: Reason::ExtractTemplateNotAllowed,
        // The template stands where only the upstream can read it. No route setting names it.
        passes: |facts| name_passes(facts, None, &facts.record.allowed.extract_templates),
        is_left_to_upstream: |facts| is_left(None, &facts.record.allowed.extract_templates),
        looks_at: |facts| {
            name_seen(facts, None, "extract_templates", &facts.record.allowed.extract_templates)
        },
    },
    Check {
        name: "budget",
        reason: Reason::BudgetExhausted,
        passes: budget::passes,
        is_left_to_upstream: |_| false,
        looks_at: budget::seen,
    },
];

/// Applies the key's own policy.
///
/// # Errors
/// The [`Reason`] of the first check that does not pass.
pub fn check(facts: &Facts<'_>) -> Result<(), Reason> {
    CHECKS.iter().find(|check| !(check.passes)(facts)).map_or(Ok(()), |check| Err(check.reason))
}

/// An unknown address is not in any network.
fn address_passes(facts: &Facts<'_>) -> bool {
    let client = facts.attributes.client;
    facts.record.allowed.ips.allows(|network| client.is_some_and(|client| network.contains(client)))
}

/// The path is normalised only for restricted keys. Other keys pass with any path.
fn endpoint_passes(facts: &Facts<'_>) -> bool {
    let endpoints = &facts.record.allowed.endpoints;
    if !endpoints.restricts() {
        return true;
    }
    let Ok(path) = NormalPath::parse(facts.attributes.path) else { return false };
    endpoints.allows(|endpoint| endpoint.matches(facts.attributes.method, &path))
}

/// The body is read only for restricted keys, and not where the route has no model.
fn model_passes(facts: &Facts<'_>) -> bool {
    let models = &facts.record.allowed.models;
    if !models.restricts() || (facts.route.model_ignored && *models != AllowList::Unreadable) {
        return true;
    }
    // A router may serve the request with any of the models that the body names.
    facts
        .models()
        .is_ok_and(|named| named.iter().all(|model| models.allows(|pattern| pattern.matches(model))))
}

/// If the route does not say where the name is, the upstream enforces the list. An unreadable list denies.
fn name_passes(facts: &Facts<'_>, source: Option<&NameSource>, allowed: &AllowList<String>) -> bool {
    match (allowed, source) {
        (AllowList::Any, _) => true,
        (AllowList::Unreadable, _) => false,
        (AllowList::Only(_), None) => true,
        (AllowList::Only(entries), Some(source)) => source
            .find(facts.attributes.path, &facts.attributes.body)
            .is_ok_and(|name| entries.contains(&name)),
    }
}

/// Whether there is a list that only the upstream can enforce.
fn is_left(source: Option<&NameSource>, allowed: &AllowList<String>) -> bool {
    source.is_none() && matches!(allowed, AllowList::Only(_))
}

fn name_seen(
    facts: &Facts<'_>,
    source: Option<&NameSource>,
    what: &str,
    allowed: &AllowList<String>,
) -> String {
    let Some(source) = source else {
        let left = if is_left(source, allowed) { "; left to the upstream" } else { "" };
        return format!("allowed_{what}: {allowed}{left}");
    };
    let name = source.find(facts.attributes.path, &facts.attributes.body);
    let name = name.map_or_else(|error| format!("none ({error})"), |name| format!("{name:?}"));
    format!("{source}: {name}; allowed_{what}: {allowed}")
}

fn quoted(models: &Models) -> String {
    models.iter().map(|model| format!("{model:?}")).collect::<Vec<_>>().join(", ")
}

fn list(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

#[cfg(test)]
mod tests;
