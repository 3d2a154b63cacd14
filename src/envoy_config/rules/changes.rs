//! Changes of headers by Keystile, and changes after it.

use super::rule::{Fault, GENERATORS, NONE, Rule, names};
use crate::{
    envoy_config::config::{Config, FilterKind, HttpChain},
    ext_authz::headers,
    findings::Severity::{Error, Warning},
};

pub(super) const RULES: &[Rule] = &[
    Rule {
        code: "mutations_not_validated",
        severities: &[Warning],
        meaning: "Envoy does not validate the headers that it gets from the authorization service; a line break in one would split the answer to the client",
        fix: "set validate_mutations to true",
        not_settable: GENERATORS,
        examine: mutations_not_validated,
    },
    Rule {
        code: "mutations_refused",
        severities: &[Error],
        meaning: "decoder_header_mutation_rules refuses changes that Keystile makes, so requests fail with 500, or the upstream gets forged headers",
        fix: "let allow_expression match x-auth-.* and x-ratelimit-.*, and every header that may hold a key",
        not_settable: NONE,
        examine: mutations_refused,
    },
    Rule {
        code: "identity_headers_changed",
        severities: &[Warning],
        meaning: "Keystile's headers are removed or replaced after the check, so the upstream does not get what Keystile decided",
        fix: "remove clients' copies in early_header_mutation_extensions instead, which runs before the check",
        not_settable: NONE,
        examine: identity_headers_changed,
    },
];

fn mutations_not_validated(config: &Config) -> Vec<Fault> {
    let checks = config.checks().filter(|here| !here.check.validates_mutations);
    let faults = checks.map(|here| {
        Fault::new(Warning, format!("{}.validate_mutations", here.check.path)).of(here.chain.origin)
    });
    faults.collect()
}

fn mutations_refused(config: &Config) -> Vec<Fault> {
    let faults = config.checks().filter_map(|here| {
        let rules = here.check.mutation_rules.as_ref()?;
        let names_of_all = headers::TABLE.iter().map(|header| header.name);
        let refused: Vec<_> = names_of_all.filter(|name| !rules.admit(name)).map(str::to_owned).collect();
        (!refused.is_empty()).then(|| Fault::new(Error, &rules.path).because(names(&refused)))
    });
    faults.collect()
}

fn identity_headers_changed(config: &Config) -> Vec<Fault> {
    let is_identity = |name: &str| headers::TABLE.iter().any(|header| header.name == name);
    let mut faults = Vec::new();
    for chain in &config.chains {
        let Some(first) = chain.checks().next() else { continue };
        for filter in &chain.filters[first.at..] {
            let FilterKind::HeaderMutation { removed, set } = &filter.kind else { continue };
            let changes = |name: &str| {
                removed.iter().any(|matcher| matcher.matches(name)) || set.iter().any(|own| own == name)
            };
            if headers::TABLE.iter().any(|header| changes(header.name)) {
                faults.push(Fault::new(Warning, &filter.path));
            }
        }
        faults.extend(on_routes(chain, is_identity));
    }
    faults
}

/// The same, by routes, virtual hosts and route configurations.
fn on_routes(chain: &HttpChain, is_identity: impl Fn(&str) -> bool) -> impl Iterator<Item = Fault> {
    chain.routes.iter().filter_map(move |route| {
        let mut changed: Vec<_> =
            route.changed_headers.iter().filter(|name| is_identity(name)).cloned().collect();
        changed.sort();
        changed.dedup();
        (chain.is_checked(route) && !changed.is_empty())
            .then(|| Fault::new(Warning, &route.path).because(names(&changed)))
    })
}
