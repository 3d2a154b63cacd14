//! Routes, and the settings of filters on them.

use std::sync::Arc;

use super::service::Service;

/// A route. Each cluster of a weighted route is a route of its own.
#[derive(Debug)]
pub(in crate::envoy_config) struct Route {
    pub(in crate::envoy_config) path: String,
    pub(in crate::envoy_config) name: String,
    pub(in crate::envoy_config) virtual_host: String,
    /// Where requests go. None for an answer of Envoy's own.
    pub(in crate::envoy_config) cluster: Option<String>,
    /// The settings of filters, by their names, from the least to the most specific.
    pub(in crate::envoy_config) settings: Vec<FilterSettings>,
    /// Headers that are removed or set after all filters.
    pub(in crate::envoy_config) changed_headers: Vec<String>,
}

/// The settings of a filter on a route, its virtual host or its route configuration.
#[derive(Debug, Clone)]
pub(in crate::envoy_config) struct FilterSettings {
    pub(in crate::envoy_config) path: String,
    pub(in crate::envoy_config) filter: String,
    pub(in crate::envoy_config) is_disabled: bool,
    /// Whether they are of the type of the filter that asks Keystile.
    pub(in crate::envoy_config) is_check: bool,
    pub(in crate::envoy_config) context: Vec<(String, String)>,
    pub(in crate::envoy_config) body: Option<Arc<BodySettings>>,
    /// Whether bodies are not sent, whatever the filter says.
    pub(in crate::envoy_config) disables_body: bool,
    /// Another service than the filter's.
    pub(in crate::envoy_config) service: Option<Arc<Service>>,
}

/// What is sent of a body.
#[derive(Debug)]
pub(in crate::envoy_config) struct BodySettings {
    pub(in crate::envoy_config) path: String,
    pub(in crate::envoy_config) max_bytes: f64,
    pub(in crate::envoy_config) allows_partial: bool,
    pub(in crate::envoy_config) packs_as_bytes: bool,
}
