//! The filter that asks Keystile, and how it calls it.

use std::time::Duration;

use crate::envoy_config::{
    config::{BodySettings, HttpCheck, MutationRules, Service, Target},
    matcher::NameMatcher,
    node::Node,
};

/// Envoy's default for `base_interval`.
const BASE_INTERVAL: Duration = Duration::from_secs(1);

/// Envoy's default for `max_interval`, as a multiple of `base_interval`.
const MAX_INTERVAL: u32 = 10;

pub(super) fn read(node: &Node<'_>) -> HttpCheck {
    let patterns =
        |name| node.field(name).map(|list| list.items("patterns").iter().map(NameMatcher::read).collect());
    HttpCheck {
        path: node.path.clone(),
        service: service(node),
        fails_open: node.flag("failure_mode_allow"),
        is_shadow: node.flag("shadow_mode"),
        validates_mutations: node.flag("validate_mutations"),
        encodes_raw_headers: node.flag("encode_raw_headers"),
        clears_route_cache: node.flag("clear_route_cache"),
        answers_503: node.field("status_on_error").is_some_and(|status| {
            status.number("code") == Some(503.0) || status.text("code") == Some("ServiceUnavailable")
        }),
        fraction: fraction(node),
        has_condition: node.field("filter_enabled_metadata").is_some(),
        allowed_headers: patterns("allowed_headers"),
        disallowed_headers: patterns("disallowed_headers").unwrap_or_default(),
        body: node.field("with_request_body").map(|body| self::body(&body)),
        mutation_rules: node.field("decoder_header_mutation_rules").map(|rules| mutation_rules(&rules)),
    }
}

/// Reads the service of a filter, or of a route's settings.
pub(super) fn service(node: &Node<'_>) -> Service {
    let without = |target| Service {
        path: node.path.clone(),
        target,
        timeout: None,
        try_timeout: None,
        metadata: Vec::new(),
    };
    let Some(service) = node.field("grpc_service") else {
        return without(if node.field("http_service").is_some() { Target::Http } else { Target::Missing });
    };
    let target = match service.field("envoy_grpc") {
        Some(client) => Target::Cluster {
            name: client.text("cluster_name").unwrap_or_default().to_owned(),
            authority: client.text("authority").map(str::to_owned),
        },
        None if service.field("google_grpc").is_some() => Target::GoogleGrpc,
        None => Target::Missing,
    };
    let retry = service.field("retry_policy").or_else(|| service.at(&["envoy_grpc", "retry_policy"]));
    let metadata = service.items("initial_metadata").into_iter();
    Service {
        target,
        timeout: service.duration("timeout"),
        try_timeout: retry.map(|retry| try_timeout(&retry)),
        metadata: metadata
            .filter_map(|entry| {
                let value = entry.text("value").unwrap_or_default().to_owned();
                Some((entry.text("key")?.to_ascii_lowercase(), value))
            })
            .collect(),
        path: service.path,
    }
}

/// The deadline of each try: Envoy takes the maximum of the pause between tries for it.
fn try_timeout(retry: &Node<'_>) -> Duration {
    let pause = retry.field("retry_back_off");
    let setting = |name| pause.as_ref().and_then(|pause| pause.duration(name));
    setting("max_interval")
        .unwrap_or_else(|| setting("base_interval").unwrap_or(BASE_INTERVAL) * MAX_INTERVAL)
}

pub(super) fn body(node: &Node<'_>) -> BodySettings {
    BodySettings {
        path: node.path.clone(),
        max_bytes: node.number("max_request_bytes").unwrap_or(0.0),
        allows_partial: node.flag("allow_partial_message"),
        packs_as_bytes: node.flag("pack_as_bytes"),
    }
}

fn mutation_rules(node: &Node<'_>) -> MutationRules {
    let expression =
        |name| node.field(name).map(|regex| NameMatcher::regex(&regex).unwrap_or(NameMatcher::Unknown));
    MutationRules {
        path: node.path.clone(),
        disallows_all: node.flag("disallow_all"),
        allowed: expression("allow_expression"),
        disallowed: expression("disallow_expression"),
    }
}

/// The part of requests that are checked. Those that are not may be denied.
fn fraction(node: &Node<'_>) -> f64 {
    let Some(enabled) = node.field("filter_enabled") else { return 1.0 };
    if node.at(&["deny_at_disable", "default_value"]).is_some_and(|value| value.flag("value")) {
        return 1.0;
    }
    let Some(part) = enabled.field("default_value") else { return 0.0 };
    let all =
        [100.0, 10_000.0, 1_000_000.0][part.choice("denominator", &["HUNDRED", "TEN_THOUSAND", "MILLION"])];
    part.number("numerator").unwrap_or(0.0) / all
}
