//! From a document to the types of a configuration.

use super::{
    config::Config,
    document::{Document, DocumentError, DocumentKind},
    node::Node,
    version::EnvoyVersion,
};

mod check;
mod cluster;
mod listener;
mod route;

use listener::Discovered;

/// Reads a document.
///
/// # Errors
/// [`DocumentError::Filtered`] for a dump without listeners.
pub(super) fn config(document: &Document) -> Result<Config, DocumentError> {
    let root = Node::root(&document.value);
    match document.kind {
        DocumentKind::Bootstrap => Ok(bootstrap(&root)),
        DocumentKind::ConfigDump => dump(&root),
    }
}

/// A static configuration. What a management server adds is not in it.
fn bootstrap(root: &Node<'_>) -> Config {
    let mut config = Config {
        version: root.field("node").and_then(|node| EnvoyVersion::of_node(&node)),
        ..Config::default()
    };
    if let Some(resources) = root.field("static_resources") {
        for cluster in resources.items("clusters") {
            cluster::read(&cluster, &mut config);
        }
        for listener in resources.items("listeners") {
            listener::read(&listener, &Discovered::default(), &mut config);
        }
    }
    for (name, what) in [("lds_config", "listeners"), ("cds_config", "clusters")] {
        if let Some(source) = root.at(&["dynamic_resources", name]) {
            config.missing.push((source.path, what));
            config.has_more_clusters = true;
        }
    }
    config
}

/// The answer of `/config_dump`.
fn dump(root: &Node<'_>) -> Result<Config, DocumentError> {
    let mut config = Config::default();
    let mut listeners = None;
    let mut discovered = Discovered::default();
    for section in root.items("configs") {
        let Some((kind, section)) = section.any() else { continue };
        match kind.rsplit('.').next().unwrap_or_default() {
            "BootstrapConfigDump" => {
                let node = section.at(&["bootstrap", "node"]);
                config.version = node.and_then(|node| EnvoyVersion::of_node(&node));
            }
            "ClustersConfigDump" => {
                for list in ["static_clusters", "dynamic_warming_clusters", "dynamic_active_clusters"] {
                    let entries = section.items(list).into_iter().filter_map(|entry| entry.field("cluster"));
                    entries.for_each(|cluster| cluster::read(&cluster, &mut config));
                }
            }
            "RoutesConfigDump" => {
                for list in ["static_route_configs", "dynamic_route_configs"] {
                    let entries = section.items(list).into_iter();
                    discovered.routes.extend(entries.filter_map(|entry| entry.field("route_config")));
                }
            }
            "EcdsConfigDump" => {
                let entries = section.items("ecds_filters").into_iter();
                discovered.filters.extend(entries.filter_map(|entry| entry.field("ecds_filter")));
            }
            "ListenersConfigDump" => listeners = Some(section),
            _ => {}
        }
    }
    let listeners = listeners.ok_or(DocumentError::Filtered)?;
    for entry in listeners.items("static_listeners") {
        if let Some(listener) = entry.field("listener") {
            listener::read(&listener, &discovered, &mut config);
        }
    }
    for entry in listeners.items("dynamic_listeners") {
        let state = entry.field("active_state").or_else(|| entry.field("warming_state"));
        if let Some(listener) = state.and_then(|state| state.field("listener")) {
            listener::read(&listener, &discovered, &mut config);
        }
    }
    Ok(config)
}
