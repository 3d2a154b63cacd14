//! Listeners, their chains of filters, and the HTTP connection managers in these.

use super::{check, route};
use crate::envoy_config::{
    config::{Config, FilterKind, HttpChain, HttpFilter, NetworkCheck, Origin, Route},
    matcher::NameMatcher,
    node::{Node, shown},
};

/// Resources of a dump that listeners name.
#[derive(Default)]
pub(super) struct Discovered<'a> {
    pub(super) routes: Vec<Node<'a>>,
    pub(super) filters: Vec<Node<'a>>,
}

/// The type of the filter for HTTP.
pub(super) const HTTP_CHECK: &str = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";

const NETWORK_CHECK: &str = "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz";
const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const MANAGER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// What Envoy does with headers whose names have underscores.
const UNDERSCORES: &[&str] = &["ALLOW", "REJECT_REQUEST", "DROP_HEADER"];

/// What Envoy does with escaped slashes. Without a runtime setting, the first is the second.
const SLASHES: &[&str] = &[
    "IMPLEMENTATION_SPECIFIC_DEFAULT",
    "KEEP_UNCHANGED",
    "REJECT_REQUEST",
    "UNESCAPE_AND_REDIRECT",
    "UNESCAPE_AND_FORWARD",
];

pub(super) fn read(node: &Node<'_>, discovered: &Discovered<'_>, config: &mut Config) {
    let name = shown(node.text("name").unwrap_or_default());
    let chains = node.items("filter_chains").into_iter().chain(node.field("default_filter_chain"));
    for filters in chains.map(|chain| chain.items("filters")) {
        let mut proxy = None;
        let checks = config.network_checks.len();
        for filter in filters {
            let Some(typed) = resolved(&filter, discovered, config) else { continue };
            let Some((kind, filter)) = typed.any() else { continue };
            match kind {
                MANAGER => {
                    let mut chain = manager(&filter, discovered, config);
                    chain.listener.clone_from(&name);
                    config.chains.push(chain);
                }
                NETWORK_CHECK => config.network_checks.push(NetworkCheck {
                    origin: if is_istios(&filter) { Origin::Istio } else { Origin::Own },
                    service: check::service(&filter),
                    fails_open: filter.flag("failure_mode_allow"),
                    path: filter.path,
                }),
                TCP_PROXY => {
                    proxy = filter.text("cluster").map(|cluster| (filter.path.clone(), cluster.to_owned()))
                }
                _ => {}
            }
        }
        let is_checked = config.network_checks.len() > checks;
        config.open_tcp_chains.extend(proxy.filter(|_| !is_checked));
    }
}

/// The configuration of a filter, which may be another resource.
fn resolved<'a>(filter: &Node<'a>, discovered: &Discovered<'a>, config: &mut Config) -> Option<Node<'a>> {
    if let Some(typed) = filter.field("typed_config") {
        return Some(typed);
    }
    let source = filter.field("config_discovery")?;
    let name = filter.text("name")?;
    let found = discovered.filters.iter().find(|found| found.text("name") == Some(name));
    let found =
        found.and_then(|found| found.field("typed_config")).or_else(|| source.field("default_config"));
    if found.is_none() {
        config.missing.push((source.path, "a filter"));
    }
    found
}

fn manager(node: &Node<'_>, discovered: &Discovered<'_>, config: &mut Config) -> HttpChain {
    let early = node.items("early_header_mutation_extensions").into_iter();
    let early = early.filter_map(|extension| extension.field("typed_config")?.any());
    let early: Vec<_> = early.flat_map(|(_, mutation)| mutation.items("mutations")).collect();
    let filters: Vec<_> = node
        .items("http_filters")
        .iter()
        .map(|filter| http_filter(filter, resolved(filter, discovered, config)))
        .collect();
    let common = node.field("common_http_protocol_options");
    let underscores =
        common.map_or(0, |common| common.choice("headers_with_underscores_action", UNDERSCORES));
    let slashes = node.choice("path_with_escaped_slashes_action", SLASHES);
    HttpChain {
        origin: origin(node, &filters),
        normalizes_path: node.flag("normalize_path"),
        merges_slashes: node.flag("merge_slashes"),
        keeps_escaped_slashes: slashes < 2,
        allows_underscores: underscores == 0,
        uses_remote_address: node.flag("use_remote_address"),
        early_removals: removals(&early),
        early_settings: settings(&early),
        filters,
        routes: routes(node, discovered, config),
        listener: String::new(),
        path: node.path.clone(),
    }
}

fn routes(node: &Node<'_>, discovered: &Discovered<'_>, config: &mut Config) -> Vec<Route> {
    if let Some(routes) = node.field("route_config") {
        return route::read(&routes);
    }
    let Some(rds) = node.field("rds").or_else(|| node.field("scoped_routes")) else { return Vec::new() };
    let name = rds.text("route_config_name");
    match discovered.routes.iter().find(|routes| name.is_some() && routes.text("name") == name) {
        Some(routes) => route::read(routes),
        None => {
            config.missing.push((rds.path, "routes"));
            Vec::new()
        }
    }
}

fn http_filter(node: &Node<'_>, typed: Option<Node<'_>>) -> HttpFilter {
    let message = typed.and_then(|typed| typed.any());
    // A matcher around a filter has the filter inside.
    let inner = message
        .as_ref()
        .filter(|(kind, _)| kind.ends_with(".ExtensionWithMatcher"))
        .and_then(|(_, outer)| outer.at(&["extension_config", "typed_config"])?.any());
    let has_matcher = inner.is_some();
    let kind = match inner.or(message) {
        Some((HTTP_CHECK, check)) => FilterKind::Check(Box::new(check::read(&check))),
        Some(("envoy.extensions.filters.http.cors.v3.Cors", _)) => FilterKind::Cors,
        Some(("envoy.extensions.filters.http.header_mutation.v3.HeaderMutation", mutation)) => {
            let mutations =
                mutation.field("mutations").map_or_else(Vec::new, |all| all.items("request_mutations"));
            FilterKind::HeaderMutation { set: settings(&mutations), removed: removals(&mutations) }
        }
        _ => FilterKind::Other,
    };
    HttpFilter {
        path: node.path.clone(),
        name: node.text("name").unwrap_or_default().to_owned(),
        is_disabled: node.flag("disabled"),
        has_matcher,
        kind,
    }
}

/// The headers that a list of mutations removes.
fn removals(mutations: &[Node<'_>]) -> Vec<NameMatcher> {
    let removals = mutations.iter().filter_map(|mutation| {
        let exact = mutation.text("remove").map(|name| NameMatcher::Exact(name.to_ascii_lowercase()));
        exact.or_else(|| Some(NameMatcher::read(&mutation.at(&["remove_on_match", "key_matcher"])?)))
    });
    removals.collect()
}

/// The headers that a list of mutations sets.
fn settings(mutations: &[Node<'_>]) -> Vec<String> {
    let set = mutations.iter().filter_map(|mutation| mutation.at(&["append", "header"])?.text("key"));
    set.map(str::to_ascii_lowercase).collect()
}

/// Who wrote a chain.
fn origin(manager: &Node<'_>, filters: &[HttpFilter]) -> Origin {
    let checks = manager.items("http_filters");
    let checks = checks.iter().filter_map(|filter| filter.field("typed_config")?.any());
    if checks.into_iter().any(|(_, filter)| is_istios(&filter)) {
        return Origin::Istio;
    }
    let is_gateways = |filter: &HttpFilter| {
        matches!(filter.kind, FilterKind::Check(_)) && filter.name.contains("/securitypolicy/")
    };
    if filters.iter().any(is_gateways) { Origin::EnvoyGateway } else { Origin::Own }
}

/// Whether Istio wrote this filter: it is switched on by the metadata of Istio's RBAC filter.
fn is_istios(filter: &Node<'_>) -> bool {
    let path = filter.field("filter_enabled_metadata").map(|matcher| matcher.items("path"));
    path.into_iter()
        .flatten()
        .any(|part| part.text("key").is_some_and(|key| key.starts_with("istio_ext_authz")))
}
