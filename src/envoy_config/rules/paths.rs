//! Paths: Keystile must check the path that the upstream gets. And the client's address.

use super::rule::{Fault, GENERATORS, ISTIO, NONE, Rule};
use crate::{
    envoy_config::config::{Config, HttpChain},
    findings::Severity::{self, Error, Warning},
};

pub(super) const RULES: &[Rule] = &[
    Rule {
        code: "path_not_normalized",
        severities: &[Error],
        meaning: "a path such as /public/../admin takes the route of /public, and the upstream may read it as /admin",
        fix: "set normalize_path to true",
        not_settable: NONE,
        examine: path_not_normalized,
    },
    Rule {
        code: "slashes_not_merged",
        severities: &[Warning],
        meaning: "a path such as //admin takes no route of /admin, and the upstream may read it as /admin",
        fix: "set merge_slashes to true; in Istio, set pathNormalization of the mesh to MERGE_SLASHES",
        not_settable: ISTIO,
        examine: slashes_not_merged,
    },
    Rule {
        code: "escaped_slashes_kept",
        severities: &[Warning],
        meaning: "a path such as /a%2Fadmin is passed on, and upstreams disagree on its meaning",
        fix: "set path_with_escaped_slashes_action to REJECT_REQUEST; if names need %2F, restrict no key and no route by path",
        not_settable: ISTIO,
        examine: escaped_slashes_kept,
    },
    Rule {
        code: "client_address_missing",
        severities: &[Warning],
        meaning: "Keystile gets the address of the connection only: behind a proxy that is the proxy's, and no limit of failures applies to clients",
        fix: "add x-client-ip with %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% to grpc_service.initial_metadata",
        not_settable: GENERATORS,
        examine: client_address_missing,
    },
    Rule {
        code: "client_address_forgeable",
        severities: &[Error, Warning],
        meaning: "a client can choose the address that Keystile gets, and so use keys of other addresses",
        fix: "set use_remote_address to true and xff_num_trusted_hops to the number of trusted proxies in front, and send %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        not_settable: NONE,
        examine: client_address_forgeable,
    },
];

/// A fault in each chain with a check that a condition holds for.
fn chains(
    config: &Config,
    severity: Severity,
    field: &str,
    is_wrong: impl Fn(&HttpChain) -> bool,
) -> Vec<Fault> {
    let checked = config.chains.iter().filter(|chain| chain.checks().next().is_some());
    let wrong = checked.filter(|chain| is_wrong(chain));
    wrong.map(|chain| Fault::new(severity, format!("{}.{field}", chain.path)).of(chain.origin)).collect()
}

fn path_not_normalized(config: &Config) -> Vec<Fault> {
    chains(config, Error, "normalize_path", |chain| !chain.normalizes_path)
}

fn slashes_not_merged(config: &Config) -> Vec<Fault> {
    chains(config, Warning, "merge_slashes", |chain| !chain.merges_slashes)
}

fn escaped_slashes_kept(config: &Config) -> Vec<Fault> {
    chains(config, Warning, "path_with_escaped_slashes_action", |chain| chain.keeps_escaped_slashes)
}

/// What is sent as the client's address.
fn client_address(metadata: &[(String, String)]) -> Option<&str> {
    metadata.iter().rfind(|(name, _)| name == "x-client-ip").map(|(_, value)| value.as_str())
}

fn client_address_missing(config: &Config) -> Vec<Fault> {
    let checks = config.checks().filter(|here| here.check.service.is_grpc());
    let missing = checks.filter(|here| client_address(&here.check.service.metadata).is_none());
    let faults = missing.map(|here| {
        Fault::new(Warning, format!("{}.initial_metadata", here.check.service.path)).of(here.chain.origin)
    });
    faults.collect()
}

fn client_address_forgeable(config: &Config) -> Vec<Fault> {
    let faults = config.checks().filter_map(|here| {
        let value = client_address(&here.check.service.metadata)?;
        let path = format!("{}.initial_metadata", here.check.service.path);
        if value.contains("%REQ(") || value.contains("%REQUEST_HEADER(") {
            return Some(Fault::new(Error, path).because("it is a header of the request"));
        }
        let is_remote = value.contains("%DOWNSTREAM_REMOTE_ADDRESS");
        let fault =
            Fault::new(Warning, format!("{}.use_remote_address", here.chain.path)).of(here.chain.origin);
        (is_remote && !here.chain.uses_remote_address).then(|| {
            fault.because("it comes from x-forwarded-for, unless a trusted proxy in front overwrites that")
        })
    });
    faults.collect()
}
