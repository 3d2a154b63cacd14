//! The rules: one table, in groups.

mod body;
mod calls;
mod changes;
mod clusters;
mod headers;
mod paths;
mod routes;
mod rule;
mod safety;
mod versions;

pub use rule::Rule;

/// All rules, in the order of the documentation.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    [
        safety::RULES,
        routes::RULES,
        headers::RULES,
        changes::RULES,
        paths::RULES,
        calls::RULES,
        clusters::RULES,
        body::RULES,
        versions::RULES,
    ]
    .into_iter()
    .flatten()
}
