//! Route configurations.

use std::sync::Arc;

use super::check;
use crate::envoy_config::{
    config::{FilterSettings, Route},
    node::{Node, shown},
};

/// The type of a route's settings for the filter that asks Keystile.
const HTTP_CHECK: &str = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute";

/// What a dump shows instead of a value that Envoy's API marks as sensitive, as it does the context of checks.
const REDACTED: &str = "[redacted]";

/// What requests of a route get from its virtual host and route configuration.
#[derive(Clone, Default)]
struct Inherited {
    settings: Vec<FilterSettings>,
    changed_headers: Vec<String>,
}

pub(super) fn read(node: &Node<'_>) -> Vec<Route> {
    let outer = Inherited::default().with(node);
    let mut routes = Vec::new();
    for host in node.items("virtual_hosts") {
        let inherited = outer.clone().with(&host);
        let name = shown(host.text("name").unwrap_or_default());
        // A tree of matchers leads to routes as well.
        let mut found = host.items("routes");
        if let Some(matcher) = host.field("matcher") {
            nested_routes(&matcher, &mut found);
        }
        for route in found {
            add(&route, &name, &inherited.clone().with(&route), &mut routes);
        }
    }
    routes
}

fn add(node: &Node<'_>, host: &str, inherited: &Inherited, routes: &mut Vec<Route>) {
    let name = shown(node.text("name").unwrap_or_default());
    let make = |path: &str, cluster: Option<String>, inherited: Inherited| Route {
        path: path.to_owned(),
        name: name.clone(),
        virtual_host: host.to_owned(),
        cluster,
        settings: inherited.settings,
        changed_headers: inherited.changed_headers,
    };
    let Some(action) = node.field("route") else {
        // A redirect, or an answer of Envoy's own.
        routes.push(make(&node.path, None, inherited.clone()));
        return;
    };
    let Some(weighted) = action.field("weighted_clusters") else {
        let cluster = action.text("cluster").unwrap_or_default().to_owned();
        routes.push(make(&node.path, Some(cluster), inherited.clone()));
        return;
    };
    for cluster in weighted.items("clusters") {
        let name = cluster.text("name").unwrap_or_default().to_owned();
        routes.push(make(&cluster.path, Some(name), inherited.clone().with(&cluster)));
    }
}

/// The routes in a tree of matchers.
fn nested_routes<'a>(node: &Node<'a>, routes: &mut Vec<Node<'a>>) {
    if let Some((kind, message)) = node.any() {
        match kind {
            "envoy.config.route.v3.Route" => return routes.push(message),
            "envoy.config.route.v3.RouteList" => return routes.extend(message.items("routes")),
            _ => {}
        }
    }
    for child in node.children() {
        nested_routes(&child, routes);
    }
}

impl Inherited {
    /// The same, with what this level sets.
    fn with(mut self, node: &Node<'_>) -> Self {
        let settings = node.field("typed_per_filter_config");
        let settings =
            settings.iter().flat_map(Node::entries).map(|(name, settings)| self::settings(name, &settings));
        for mut settings in settings.collect::<Vec<_>>() {
            // Envoy merges the context of all levels.
            let outer = self.settings.iter().rfind(|outer| outer.filter == settings.filter);
            let outer = outer.map_or_else(Vec::new, |outer| outer.context.clone());
            let inner = std::mem::take(&mut settings.context);
            let is_new = |(name, _): &(String, String)| !inner.iter().any(|(own, _)| own == name);
            settings.context = outer.into_iter().filter(is_new).chain(inner.iter().cloned()).collect();
            self.settings.push(settings);
        }
        let removed = node.texts("request_headers_to_remove").into_iter();
        let set = node.items("request_headers_to_add").into_iter();
        let set = set.filter_map(|entry| entry.field("header")?.text("key").map(str::to_owned));
        self.changed_headers.extend(removed.chain(set).map(|name| name.to_ascii_lowercase()));
        self
    }
}

fn settings(name: &str, node: &Node<'_>) -> FilterSettings {
    let message = node.any();
    let wrapper = message.as_ref().filter(|(kind, _)| kind.ends_with(".FilterConfig"));
    let is_off = wrapper.is_some_and(|(_, wrapper)| wrapper.flag("disabled"));
    let inner = wrapper.and_then(|(_, wrapper)| wrapper.field("config")?.any());
    let message = inner.or_else(|| message.clone());
    let check = message.filter(|(kind, _)| *kind == HTTP_CHECK).map(|(_, check)| check);
    let own = check.as_ref().and_then(|check| check.field("check_settings"));
    let context = own.as_ref().and_then(|own| own.field("context_extensions"));
    let has_service =
        own.as_ref().filter(|own| own.field("grpc_service").is_some() || own.field("http_service").is_some());
    FilterSettings {
        path: node.path.clone(),
        filter: name.to_owned(),
        is_disabled: is_off || check.as_ref().is_some_and(|check| check.flag("disabled")),
        is_check: check.is_some(),
        context: context
            .iter()
            .flat_map(Node::entries)
            .filter_map(|(name, value)| Some((name.to_owned(), value.as_text()?.to_owned())))
            .filter(|(_, value)| value != REDACTED)
            .collect(),
        body: own
            .as_ref()
            .and_then(|own| own.field("with_request_body"))
            .map(|body| Arc::new(check::body(&body))),
        disables_body: own.as_ref().is_some_and(|own| own.flag("disable_request_body_buffering")),
        service: has_service.map(|own| Arc::new(check::service(own))),
    }
}
