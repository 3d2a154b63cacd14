//! Headers that clients send: forged identities, and keys that Keystile must see.

use super::rule::{Fault, GENERATORS, NONE, Rule, names};
use crate::{
    envoy_config::{
        config::{CheckInChain, Config, FilterKind, HttpChain},
        matcher::NameMatcher,
    },
    ext_authz::headers,
    findings::Severity::{self, Error, Warning},
};

pub(super) const RULES: &[Rule] = &[
    Rule {
        code: "identity_headers_kept",
        severities: &[Error, Warning],
        meaning: "a client's own copies of Keystile's headers are not removed before routing; where a request is not checked, the upstream takes them for Keystile's",
        fix: "remove x-auth-* and x-ratelimit-* in early_header_mutation_extensions, as in envoy/uds.yaml",
        not_settable: NONE,
        examine: identity_headers_kept,
    },
    Rule {
        code: "underscores_allowed",
        severities: &[Error],
        meaning: "clients may send x_auth_user_id, which many upstreams read as x-auth-user-id",
        fix: "set common_http_protocol_options.headers_with_underscores_action to REJECT_REQUEST",
        not_settable: NONE,
        examine: underscores_allowed,
    },
    Rule {
        code: "headers_not_sent",
        severities: &[Warning],
        meaning: "allowed_headers keeps headers from Keystile that it reads",
        fix: "add them to allowed_headers, or remove allowed_headers",
        not_settable: NONE,
        examine: headers_not_sent,
    },
    Rule {
        code: "raw_headers_missing",
        severities: &[Warning],
        meaning: "Envoy joins repeated headers and changes bytes that are not UTF-8 before Keystile sees them",
        fix: "set encode_raw_headers to true",
        not_settable: GENERATORS,
        examine: raw_headers_missing,
    },
    Rule {
        code: "cors_after_check",
        severities: &[Warning],
        meaning: "the CORS filter runs after the check, so preflight requests of browsers, which have no key, are denied",
        fix: "put envoy.filters.http.cors before ext_authz",
        not_settable: GENERATORS,
        examine: cors_after_check,
    },
];

/// The names that Keystile sends to upstreams.
fn identity_headers() -> impl Iterator<Item = &'static str> {
    headers::TABLE.iter().map(|header| header.name)
}

/// What removes headers before the first check of a chain, on every route.
fn early_removals(chain: &HttpChain) -> Vec<&NameMatcher> {
    let filters = chain.filters.iter().take_while(|filter| !matches!(filter.kind, FilterKind::Check(_)));
    let on_every_route = filters.filter(|filter| {
        let mut routes = chain.routes.iter();
        !filter.has_matcher && !filter.is_disabled && routes.all(|route| HttpChain::runs_on(filter, route))
    });
    let in_filters = on_every_route.filter_map(|filter| match &filter.kind {
        FilterKind::HeaderMutation { removed, .. } => Some(removed),
        _ => None,
    });
    chain.early_removals.iter().chain(in_filters.flatten()).collect()
}

/// The first check of each chain with one.
fn first_checks(config: &Config) -> impl Iterator<Item = CheckInChain<'_>> {
    config.chains.iter().filter_map(|chain| chain.checks().next())
}

fn identity_headers_kept(config: &Config) -> Vec<Fault> {
    let faults = first_checks(config).filter_map(|here| {
        let removals = early_removals(here.chain);
        let is_set = |name: &str| here.chain.early_settings.iter().any(|own| own == name);
        let is_kept = |name: &&str| is_set(name) || !removals.iter().any(|matcher| matcher.matches(name));
        let kept: Vec<_> = identity_headers().filter(is_kept).map(str::to_owned).collect();
        let fault =
            Fault::new(severity(&here), format!("{}.early_header_mutation_extensions", here.chain.path));
        (!kept.is_empty()).then(|| fault.because(names(&kept)).of(here.chain.origin))
    });
    faults.collect()
}

/// Keystile itself removes its headers from what it checks. Other requests bring them to an upstream.
fn severity(here: &CheckInChain<'_>) -> Severity {
    let is_conditional = here.filter.has_matcher || here.check.has_condition || here.check.fraction < 1.0;
    let mut proxied = here.chain.routes.iter().filter(|route| route.cluster.is_some());
    let some_pass = here.chain.routes.is_empty() || proxied.any(|route| !here.chain.is_checked(route));
    if is_conditional || some_pass { Error } else { Warning }
}

fn underscores_allowed(config: &Config) -> Vec<Fault> {
    let open = first_checks(config).filter(|here| {
        let removals = early_removals(here.chain);
        let removes = |name: String| removals.iter().any(|matcher| matcher.matches(&name));
        here.chain.allows_underscores && !identity_headers().flat_map(with_underscores).all(removes)
    });
    let path = "common_http_protocol_options.headers_with_underscores_action";
    open.map(|here| Fault::new(Error, format!("{}.{path}", here.chain.path)).of(here.chain.origin)).collect()
}

/// Spellings of a name that some servers read as the same: all underscores, the first alone, and all but the first.
fn with_underscores(name: &str) -> [String; 3] {
    let first = name.replacen('-', "_", 1);
    let others = first.replace('-', "\u{0}").replacen('_', "-", 1).replace('\u{0}', "_");
    [name.replace('-', "_"), first, others]
}

fn headers_not_sent(config: &Config) -> Vec<Fault> {
    let faults = config.checks().filter_map(|here| {
        let check = here.check;
        let is_allowed = |name: &str| {
            let allows =
                check.allowed_headers.as_ref().is_none_or(|all| all.iter().any(|one| one.matches(name)));
            allows && !check.disallowed_headers.iter().any(|one| one.matches(name))
        };
        let mut missing = Vec::new();
        if !is_allowed("authorization") && !is_allowed("x-api-key") {
            missing.push("authorization and x-api-key, where keys are by default".to_owned());
        }
        if !is_allowed("content-type") {
            missing.push("content-type, which shows gRPC callers and JSON bodies".to_owned());
        }
        let sends_bodies = check.body.is_some()
            || here.chain.routes.iter().any(|route| route.settings.iter().any(|own| own.body.is_some()));
        let about_bodies =
            ["content-encoding", "upgrade"].into_iter().filter(|name| sends_bodies && !is_allowed(name));
        missing.extend(about_bodies.map(|name| format!("{name}, without which a body is not understood")));
        let fault = Fault::new(Warning, format!("{}.allowed_headers", check.path));
        (!missing.is_empty()).then(|| fault.because(names(&missing)).of(here.chain.origin))
    });
    faults.collect()
}

fn raw_headers_missing(config: &Config) -> Vec<Fault> {
    let checks = config.checks().filter(|here| !here.check.encodes_raw_headers);
    let path = |here: &CheckInChain<'_>| format!("{}.encode_raw_headers", here.check.path);
    checks.map(|here| Fault::new(Warning, path(&here)).of(here.chain.origin)).collect()
}

fn cors_after_check(config: &Config) -> Vec<Fault> {
    let faults = config.checks().flat_map(|here| {
        let later = here.chain.filters[here.at..].iter();
        let cors = later.filter(|filter| matches!(filter.kind, FilterKind::Cors));
        cors.map(move |filter| Fault::new(Warning, &filter.path).of(here.chain.origin))
    });
    faults.collect()
}
