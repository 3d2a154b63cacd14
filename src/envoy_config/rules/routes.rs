//! Routes without a check, and settings of routes that do not apply.

use std::collections::{BTreeMap, BTreeSet};

use super::rule::{Fault, NONE, Rule, names};
use crate::{
    attributes::route::RouteSettings,
    envoy_config::{
        config::{CheckInChain, Config, HttpChain, Route},
        node::shown,
    },
    findings::Severity::{Error, Note, Warning},
};

pub(super) const RULES: &[Rule] = &[
    Rule {
        code: "listener_unchecked",
        severities: &[Error, Note],
        meaning: "requests of a listener are not checked",
        fix: "none, if they need no key; otherwise add the filter here as well, or remove the listener",
        not_settable: NONE,
        examine: listener_unchecked,
    },
    Rule {
        code: "route_unchecked",
        severities: &[Note],
        meaning: "requests of these routes are not checked",
        fix: "none, if they need no key",
        not_settable: NONE,
        examine: route_unchecked,
    },
    Rule {
        code: "route_settings_ignored",
        severities: &[Error],
        meaning: "the settings are for a filter of another name, so Envoy ignores them: scopes are not required there, and disabled has no effect",
        fix: "use the name that the filter has in http_filters as the key in typed_per_filter_config",
        not_settable: NONE,
        examine: route_settings_ignored,
    },
    Rule {
        code: "route_misconfigured",
        severities: &[Error],
        meaning: "Keystile does not know a setting of the route or its value, and denies all its requests",
        fix: "correct it, as in docs/reference/routes.md",
        not_settable: NONE,
        examine: route_misconfigured,
    },
    Rule {
        code: "route_shadow",
        severities: &[Note],
        meaning: "denials are only reported on this route, so requests without a key pass",
        fix: "none, if the route has no secrets; otherwise remove keystile.mode",
        not_settable: NONE,
        examine: route_shadow,
    },
    Rule {
        code: "route_cache_cleared",
        severities: &[Warning],
        meaning: "Envoy chooses the route again after the check, so a request may take a route whose settings were not checked",
        fix: "remove clear_route_cache",
        not_settable: NONE,
        examine: route_cache_cleared,
    },
];

/// Whether anything of a chain is checked.
fn has_check(chain: &HttpChain) -> bool {
    chain.checks().any(|here| here.check.service.is_grpc())
}

/// The cluster of a route, where the configuration and not a request names it.
fn named(route: &Route) -> Option<String> {
    route.cluster.as_deref().filter(|cluster| !cluster.is_empty()).map(shown)
}

fn listener_unchecked(config: &Config) -> Vec<Fault> {
    let (checked, others): (Vec<_>, Vec<_>) = config.chains.iter().partition(|chain| has_check(chain));
    if checked.is_empty() {
        // All of it is one finding: `check_missing`.
        return Vec::new();
    }
    let clusters = |chain: &HttpChain| chain.routes.iter().filter_map(named).collect::<BTreeSet<_>>();
    let protected: BTreeSet<_> = checked
        .iter()
        .flat_map(|chain| chain.routes.iter().filter(|route| chain.is_checked(route)))
        .filter_map(named)
        .collect();
    let mut faults = Vec::new();
    let mut open = BTreeSet::new();
    for chain in others {
        let shared: Vec<_> = clusters(chain).intersection(&protected).cloned().collect();
        if shared.is_empty() {
            open.insert(chain.listener.clone());
        } else {
            let detail = format!("it leads to {}, which other listeners protect", names(&shared));
            faults.push(Fault::new(Error, &chain.path).because(detail));
        }
    }
    for (path, cluster) in &config.open_tcp_chains {
        if protected.contains(&shown(cluster)) {
            let detail = format!("it leads to {}, which other listeners protect", shown(cluster));
            faults.push(Fault::new(Error, path).because(detail));
        }
    }
    // A proxy of a mesh has many of them.
    let open: Vec<_> = open.into_iter().collect();
    let note = (!open.is_empty()).then(|| Fault::new(Note, "").because(names(&open)));
    faults.into_iter().chain(note).collect()
}

fn route_unchecked(config: &Config) -> Vec<Fault> {
    let mut faults = Vec::new();
    for chain in config.chains.iter().filter(|chain| has_check(chain)) {
        let mut hosts: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for route in chain.routes.iter().filter(|route| !chain.is_checked(route)) {
            let name = if route.name.is_empty() { &route.path } else { &route.name };
            hosts.entry(&route.virtual_host).or_default().push(name.clone());
        }
        faults.extend(hosts.into_iter().map(|(host, routes)| {
            let fault = Fault::new(Note, format!("{}.route_config.virtual_hosts[{host}]", chain.path));
            fault.because(names(&routes))
        }));
    }
    faults
}

fn route_settings_ignored(config: &Config) -> Vec<Fault> {
    let mut faults = Vec::new();
    for chain in config.chains.iter().filter(|chain| has_check(chain)) {
        let is_known = |name: &str| chain.filters.iter().any(|filter| filter.name == name);
        let settings = chain.routes.iter().flat_map(|route| &route.settings);
        let ignored = settings.filter(|settings| settings.is_check && !is_known(&settings.filter));
        faults.extend(ignored.map(|settings| Fault::new(Error, &settings.path)));
    }
    faults
}

/// The settings of each route for the filter, read as Keystile reads them.
fn settings(config: &Config) -> impl Iterator<Item = (&str, Result<RouteSettings, String>)> {
    let routes = config.chains.iter().flat_map(|chain| &chain.routes);
    let settings = routes.flat_map(|route| &route.settings).filter(|settings| !settings.context.is_empty());
    settings.map(|settings| {
        let pairs = settings.context.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        (settings.path.as_str(), RouteSettings::parse(pairs).map_err(|error| error.to_string()))
    })
}

fn route_misconfigured(config: &Config) -> Vec<Fault> {
    let faults = settings(config)
        .filter_map(|(path, settings)| Some(Fault::new(Error, path).because(shown(&settings.err()?))));
    faults.collect()
}

fn route_shadow(config: &Config) -> Vec<Fault> {
    let shadow = settings(config)
        .filter(|(_, settings)| settings.as_ref().is_ok_and(|settings| settings.shadow == Some(true)));
    shadow.map(|(path, _)| Fault::new(Note, path)).collect()
}

fn route_cache_cleared(config: &Config) -> Vec<Fault> {
    let checks = config.checks().filter(|here| here.check.clears_route_cache);
    let path = |here: CheckInChain<'_>| format!("{}.clear_route_cache", here.check.path);
    checks.map(|here| Fault::new(Warning, path(here))).collect()
}
