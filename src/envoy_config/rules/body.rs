//! Bodies that are sent with checks.

use super::rule::{Fault, NONE, Rule};
use crate::{
    attributes::route::{NameSource, RouteSettings},
    envoy_config::config::{BodySettings, Config, HttpChain, Origin},
    ext_authz::MAX_MESSAGE_SIZE,
    findings::Severity::{Error, Warning},
};

/// What the rest of a check may need in its message: headers, and what a route adds.
const REST_OF_MESSAGE: usize = 256 << 10;

pub(super) const RULES: &[Rule] = &[
    Rule {
        code: "body_too_large",
        severities: &[Error],
        meaning: "Envoy sends bodies that do not fit in a message to Keystile, which has at most 16 MiB with the headers, so such requests are denied",
        fix: "set max_request_bytes to at most 16000000",
        not_settable: NONE,
        examine: body_too_large,
    },
    Rule {
        code: "body_partial",
        severities: &[Warning],
        meaning: "Envoy sends the first part of a long body; the rest may hold the model, so Keystile denies keys that are restricted to some models",
        fix: "set allow_partial_message to false: a longer body then gets 413",
        not_settable: NONE,
        examine: body_partial,
    },
    Rule {
        code: "body_not_bytes",
        severities: &[Warning],
        meaning: "Envoy changes bytes of bodies that are not UTF-8; only the filter's own with_request_body can change that, not a route's",
        fix: "set pack_as_bytes to true in the filter's with_request_body",
        not_settable: NONE,
        examine: body_not_bytes,
    },
    Rule {
        code: "body_not_sent",
        severities: &[Error],
        meaning: "Keystile reads a name from the body on this route, but Envoy sends it no body there, so keys that are restricted to some names are denied",
        fix: "give the route's check_settings a with_request_body, and the filter one with pack_as_bytes",
        not_settable: NONE,
        examine: body_not_sent,
    },
    Rule {
        code: "body_held_back",
        severities: &[Warning],
        meaning: "the route's own check_settings replace those of its virtual host, which send no bodies: Envoy holds bodies back and refuses long ones",
        fix: "repeat disable_request_body_buffering in the route's check_settings, or give them a with_request_body",
        not_settable: NONE,
        examine: body_held_back,
    },
];

/// The settings of filters and of routes.
fn bodies(config: &Config) -> impl Iterator<Item = (&BodySettings, Origin)> {
    config.chains.iter().flat_map(|chain| {
        let filters = chain.checks().filter_map(|here| here.check.body.as_ref());
        let settings = chain.routes.iter().flat_map(|route| &route.settings);
        let routes = settings.filter_map(|settings| settings.body.as_deref());
        filters.chain(routes).map(|body| (body, chain.origin))
    })
}

fn body_too_large(config: &Config) -> Vec<Fault> {
    #[expect(clippy::cast_precision_loss, reason = "both are small")]
    let limit = (MAX_MESSAGE_SIZE - REST_OF_MESSAGE) as f64;
    let wrong = bodies(config).filter(|(body, _)| body.max_bytes > limit);
    wrong
        .map(|(body, origin)| Fault::new(Error, format!("{}.max_request_bytes", body.path)).of(origin))
        .collect()
}

fn body_partial(config: &Config) -> Vec<Fault> {
    let wrong = bodies(config).filter(|(body, _)| body.allows_partial);
    wrong
        .map(|(body, origin)| Fault::new(Warning, format!("{}.allow_partial_message", body.path)).of(origin))
        .collect()
}

fn body_not_bytes(config: &Config) -> Vec<Fault> {
    let faults = config.checks().filter_map(|here| {
        let settings = here.chain.routes.iter().flat_map(|route| &route.settings);
        let on_routes =
            settings.filter(|settings| settings.filter == here.filter.name).any(|own| own.body.is_some());
        let path = format!("{}.with_request_body.pack_as_bytes", here.check.path);
        let is_wrong = match &here.check.body {
            Some(body) => !body.packs_as_bytes,
            None => on_routes,
        };
        is_wrong.then(|| Fault::new(Warning, path).of(here.chain.origin))
    });
    faults.collect()
}

fn body_not_sent(config: &Config) -> Vec<Fault> {
    let mut faults = Vec::new();
    for here in config.checks() {
        for route in &here.chain.routes {
            let own = route.settings.iter().rfind(|settings| settings.filter == here.filter.name);
            let Some(own) = own.filter(|own| !own.is_disabled && !HttpChain::sends_body(&here, route)) else {
                continue;
            };
            let pairs = own.context.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let Ok(settings) = RouteSettings::parse(pairs) else { continue };
            let mut sources = [&settings.chatbot, &settings.agent].into_iter().flatten();
            if sources.any(|source| matches!(source, NameSource::BodyField(_))) {
                faults.push(Fault::new(Error, &own.path));
            }
        }
    }
    faults
}

fn body_held_back(config: &Config) -> Vec<Fault> {
    let mut faults = Vec::new();
    for here in config.checks().filter(|here| here.check.body.is_some()) {
        for route in &here.chain.routes {
            let mut settings = route.settings.iter().filter(|settings| settings.filter == here.filter.name);
            let Some(own) = settings.next_back() else { continue };
            let is_plain = !own.is_disabled && !own.disables_body && own.body.is_none();
            if is_plain && settings.any(|outer| outer.disables_body) {
                faults.push(Fault::new(Warning, &own.path));
            }
        }
    }
    faults
}
