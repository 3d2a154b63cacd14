//! What lets requests pass without a decision.

use super::rule::{Fault, GENERATORS, NONE, Rule};
use crate::{
    envoy_config::config::{Config, Target},
    findings::Severity::{Error, Note, Warning},
};

pub(super) const RULES: &[Rule] = &[
    Rule {
        code: "fail_open",
        severities: &[Error],
        meaning: "requests pass without a check while Keystile does not answer",
        fix: "set failure_mode_allow to false",
        not_settable: NONE,
        examine: fail_open,
    },
    Rule {
        code: "shadow_mode",
        severities: &[Error],
        meaning: "Envoy lets every request pass, whatever Keystile decides",
        fix: "remove shadow_mode; to try Keystile on some routes, give them keystile.mode: shadow",
        not_settable: NONE,
        examine: shadow_mode,
    },
    Rule {
        code: "check_partial",
        severities: &[Error],
        meaning: "only a part of the requests is checked, and the others pass",
        fix: "remove filter_enabled, or set deny_at_disable",
        not_settable: NONE,
        examine: check_partial,
    },
    Rule {
        code: "check_conditional",
        severities: &[Note],
        meaning: "metadata or a matcher decides which requests are checked, and the others pass",
        fix: "none, if that is meant; examine what sets the metadata",
        not_settable: NONE,
        examine: check_conditional,
    },
    Rule {
        code: "check_missing",
        severities: &[Error],
        meaning: "no filter asks an authorization service over gRPC, so nothing is checked",
        fix: "add envoy.filters.http.ext_authz with a grpc_service, as in envoy/uds.yaml",
        not_settable: NONE,
        examine: check_missing,
    },
    Rule {
        code: "service_missing",
        severities: &[Error],
        meaning: "the filter names no service, so Envoy denies or ends at the first request, though it accepts the configuration",
        fix: "set grpc_service.envoy_grpc.cluster_name",
        not_settable: NONE,
        examine: service_missing,
    },
    Rule {
        code: "service_not_examined",
        severities: &[Note],
        meaning: "the filter asks over HTTP, so not Keystile, or with Google's gRPC client, which was not examined",
        fix: "for Keystile, use grpc_service.envoy_grpc",
        not_settable: NONE,
        examine: service_not_examined,
    },
    Rule {
        code: "network_check",
        severities: &[Note],
        meaning: "connections that are not HTTP are checked as well; they have no key, so Keystile denies them with not_http",
        fix: "none, if such connections are to be closed",
        not_settable: NONE,
        examine: network_check,
    },
    Rule {
        code: "not_in_document",
        severities: &[Warning],
        meaning: "a part of the configuration comes from elsewhere and was not examined",
        fix: "examine the running Envoy: give the URL of its admin listener, or its whole /config_dump",
        not_settable: GENERATORS,
        examine: not_in_document,
    },
];

fn fail_open(config: &Config) -> Vec<Fault> {
    let http = config.checks().filter(|here| here.check.fails_open);
    let http = http.map(|here| Fault::new(Error, format!("{}.failure_mode_allow", here.check.path)));
    let network = config.network_checks.iter().filter(|check| check.fails_open);
    http.chain(network.map(|check| Fault::new(Error, format!("{}.failure_mode_allow", check.path)))).collect()
}

fn shadow_mode(config: &Config) -> Vec<Fault> {
    let checks = config.checks().filter(|here| here.check.is_shadow);
    checks.map(|here| Fault::new(Error, format!("{}.shadow_mode", here.check.path))).collect()
}

fn check_partial(config: &Config) -> Vec<Fault> {
    let checks = config.checks().filter(|here| here.check.fraction < 1.0);
    let faults = checks.map(|here| {
        let fault = Fault::new(Error, format!("{}.filter_enabled", here.check.path));
        fault.because(format!("{} percent", here.check.fraction * 100.0))
    });
    faults.collect()
}

fn check_conditional(config: &Config) -> Vec<Fault> {
    let checks = config.checks().filter(|here| here.check.has_condition || here.filter.has_matcher);
    checks.map(|here| Fault::new(Note, &here.check.path)).collect()
}

fn check_missing(config: &Config) -> Vec<Fault> {
    // What is elsewhere may have one. That is a finding of its own.
    let may_have_one = !config.missing.is_empty();
    if may_have_one || config.calls().any(|call| call.service.is_grpc()) {
        Vec::new()
    } else {
        vec![Fault::new(Error, "")]
    }
}

fn service_missing(config: &Config) -> Vec<Fault> {
    let calls = config.calls().filter(|call| {
        matches!(call.service.target, Target::Missing) || call.service.cluster().is_some_and(str::is_empty)
    });
    calls.map(|call| Fault::new(Error, &call.service.path)).collect()
}

fn service_not_examined(config: &Config) -> Vec<Fault> {
    let calls =
        config.calls().filter(|call| matches!(call.service.target, Target::Http | Target::GoogleGrpc));
    calls.map(|call| Fault::new(Note, &call.service.path)).collect()
}

fn network_check(config: &Config) -> Vec<Fault> {
    config.network_checks.iter().map(|check| Fault::new(Note, &check.path)).collect()
}

fn not_in_document(config: &Config) -> Vec<Fault> {
    config.missing.iter().map(|(path, what)| Fault::new(Warning, path).because(*what)).collect()
}
