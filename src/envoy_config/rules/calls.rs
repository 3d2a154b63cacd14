//! How Keystile is called: deadlines, tries, and the name in the call.

use std::time::Duration;

use super::rule::{Fault, GENERATORS, NONE, Rule};
use crate::{
    envoy_config::config::{Call, Config, Target},
    findings::Severity::{self, Error, Note, Warning},
};

/// What the first proof of a key takes on an idle machine, at bcrypt's cost of 12, with some reserve.
const FIRST_PROOF: Duration = Duration::from_millis(300);

/// A deadline that leaves room for a few proofs before it.
const AMPLE: Duration = Duration::from_secs(1);

pub(super) const RULES: &[Rule] = &[
    Rule {
        code: "timeout_short",
        severities: &[Error, Warning],
        meaning: "the deadline of a check is too short for the first use of a key, which takes about 250 ms of a CPU at bcrypt's cost of 12",
        fix: "set grpc_service.timeout to 2s, and KEYSTILE_TIMEOUT to the same",
        not_settable: NONE,
        examine: timeout_short,
    },
    Rule {
        code: "timeout_missing",
        severities: &[Warning],
        meaning: "a check has no deadline, so requests wait as long as an instance hangs",
        fix: "set grpc_service.timeout to 2s",
        not_settable: NONE,
        examine: timeout_missing,
    },
    Rule {
        code: "try_short",
        severities: &[Error, Warning],
        meaning: "retry_back_off.max_interval is also the deadline of each try: with less than the timeout, Envoy sends the same check again to a busy Keystile",
        fix: "set max_interval to the same as grpc_service.timeout",
        not_settable: NONE,
        examine: try_short,
    },
    Rule {
        code: "retry_missing",
        severities: &[Warning],
        meaning: "a check is not tried again when the connection breaks, as at each restart of Keystile",
        fix: "add grpc_service.retry_policy, as in envoy/uds.yaml",
        not_settable: GENERATORS,
        examine: retry_missing,
    },
    Rule {
        code: "status_not_503",
        severities: &[Warning],
        meaning: "clients get 403 while Keystile does not answer, as if their key were forbidden, and do not try again",
        fix: "set status_on_error to 503",
        not_settable: NONE,
        examine: status_not_503,
    },
    Rule {
        code: "authority_invalid",
        severities: &[Error],
        meaning: "the name in the call is no valid :authority, so Keystile's HTTP/2 resets every call with PROTOCOL_ERROR",
        fix: "set envoy_grpc.authority, or grpc_health_check.authority, to a name such as keystile",
        not_settable: NONE,
        examine: authority_invalid,
    },
    Rule {
        code: "authority_missing",
        severities: &[Note],
        meaning: "the name of the cluster is sent as the :authority, so a new name of the cluster may break all calls",
        fix: "set envoy_grpc.authority to a name such as keystile",
        not_settable: NONE,
        examine: authority_missing,
    },
];

/// The severity of a deadline.
fn severity(deadline: Duration) -> Option<Severity> {
    match deadline {
        deadline if deadline < FIRST_PROOF => Some(Error),
        deadline if deadline < AMPLE => Some(Warning),
        _ => None,
    }
}

fn calls(config: &Config) -> impl Iterator<Item = Call<'_>> {
    config.calls().filter(|call| call.service.is_grpc())
}

fn timeout_short(config: &Config) -> Vec<Fault> {
    let faults = calls(config).filter_map(|call| {
        let deadline = call.service.deadline()?;
        let default = if call.service.timeout.is_none() { ", Envoy's default" } else { "" };
        let fault = Fault::new(severity(deadline)?, format!("{}.timeout", call.service.path)).of(call.origin);
        Some(fault.because(format!("{}{default}", humantime::format_duration(deadline))))
    });
    faults.collect()
}

fn timeout_missing(config: &Config) -> Vec<Fault> {
    let without = calls(config).filter(|call| call.service.deadline().is_none());
    without
        .map(|call| Fault::new(Warning, format!("{}.timeout", call.service.path)).of(call.origin))
        .collect()
}

fn try_short(config: &Config) -> Vec<Fault> {
    let faults = calls(config).filter_map(|call| {
        let (one, all) = (call.service.try_timeout?, call.service.deadline()?);
        let severity = if one < FIRST_PROOF { Error } else { Warning };
        let path = format!("{}.retry_policy.retry_back_off.max_interval", call.service.path);
        let [shown, all_shown] = [one, all].map(humantime::format_duration);
        (one < all)
            .then(|| Fault::new(severity, path).of(call.origin).because(format!("{shown} of {all_shown}")))
    });
    faults.collect()
}

fn retry_missing(config: &Config) -> Vec<Fault> {
    let without = calls(config).filter(|call| call.service.try_timeout.is_none());
    without
        .map(|call| Fault::new(Warning, format!("{}.retry_policy", call.service.path)).of(call.origin))
        .collect()
}

fn status_not_503(config: &Config) -> Vec<Fault> {
    let wrong = config.checks().filter(|here| !here.check.answers_503);
    let faults = wrong.map(|here| {
        Fault::new(Warning, format!("{}.status_on_error", here.check.path)).of(here.chain.origin)
    });
    faults.collect()
}

/// Whether an HTTP/2 server takes a name for an authority.
fn is_valid(authority: &str) -> bool {
    authority.parse::<http::uri::Authority>().is_ok()
}

fn authority_invalid(config: &Config) -> Vec<Fault> {
    let of_calls = config.calls().filter_map(|call| {
        let Target::Cluster { name, authority } = &call.service.target else { return None };
        let is_wrong = !name.is_empty() && !is_valid(authority.as_ref().unwrap_or(name));
        is_wrong.then(|| Fault::new(Error, format!("{}.envoy_grpc", call.service.path)).of(call.origin))
    });
    let of_health_checks = config.asked_clusters().flat_map(|(name, cluster, call)| {
        let wrong = cluster.grpc_health_checks.iter();
        let wrong = wrong.filter(move |check| !is_valid(check.authority.as_deref().unwrap_or(name)));
        wrong.map(move |check| Fault::new(Error, &check.path).of(call.origin))
    });
    of_calls.chain(of_health_checks).collect()
}

fn authority_missing(config: &Config) -> Vec<Fault> {
    let without = config.calls().filter(|call| match &call.service.target {
        Target::Cluster { name, authority: None } => !name.is_empty() && is_valid(name),
        _ => false,
    });
    without
        .map(|call| Fault::new(Note, format!("{}.envoy_grpc", call.service.path)).of(call.origin))
        .collect()
}
