//! Versions of Envoy with known faults that a configuration for Keystile can meet.

use super::rule::{Fault, NONE, Rule};
use crate::{
    envoy_config::{config::Config, version::EnvoyVersion},
    findings::Severity::Warning,
};

/// The oldest version that Keystile is tested with.
const OLDEST: EnvoyVersion = EnvoyVersion::new(36, 0);

/// A fault of Envoy. Its text is what happens.
struct Flaw {
    id: &'static str,
    text: &'static str,
    /// The first version of each branch without it.
    fixed: &'static [EnvoyVersion],
    applies: fn(&Config) -> bool,
}

/// The releases of August 2026.
const AUGUST_2026: &[EnvoyVersion] = &[
    EnvoyVersion::new(36, 10),
    EnvoyVersion::new(37, 6),
    EnvoyVersion::new(38, 4),
    EnvoyVersion::new(39, 1),
];

const FLAWS: &[Flaw] = &[
    Flaw {
        id: "CVE-2026-73547",
        text: "a CONNECT request without a path crashes Envoy when the answer to its check changes the query, as Keystile's may with query:NAME",
        fixed: AUGUST_2026,
        applies: |config| config.checks().next().is_some(),
    },
    Flaw {
        id: "CVE-2026-73551",
        text: "normalize_path leaves /public/..;/admin as it is, which some upstreams read as /admin",
        fixed: AUGUST_2026,
        applies: |config| {
            config.chains.iter().any(|chain| chain.checks().next().is_some() && chain.normalizes_path)
        },
    },
    Flaw {
        id: "CVE-2026-47205",
        text: "a client that disconnects during a check crashes Envoy on a route with its own service in check_settings",
        fixed: &[
            EnvoyVersion::new(36, 9),
            EnvoyVersion::new(37, 5),
            EnvoyVersion::new(38, 3),
            EnvoyVersion::new(39, 0),
        ],
        applies: |config| {
            let mut routes = config.chains.iter().flat_map(|chain| &chain.routes);
            routes.any(|route| route.settings.iter().any(|settings| settings.service.is_some()))
        },
    },
];

pub(super) const RULES: &[Rule] = &[
    Rule {
        code: "version_flawed",
        severities: &[Warning],
        meaning: "this version of Envoy has a known fault that this configuration can meet",
        fix: "update Envoy to 1.36.10, 1.37.6, 1.38.4, 1.39.1, 1.40.0 or later",
        not_settable: NONE,
        examine: version_flawed,
    },
    Rule {
        code: "version_untested",
        severities: &[Warning],
        meaning: "Keystile is tested with Envoy 1.36 and later, and older versions get no fixes",
        fix: "update Envoy to 1.36.10, 1.37.6, 1.38.4, 1.39.1, 1.40.0 or later",
        not_settable: NONE,
        examine: version_untested,
    },
];

fn version_flawed(config: &Config) -> Vec<Fault> {
    let Some(version) = config.version else { return Vec::new() };
    let flaws = FLAWS.iter().filter(|flaw| !version.has_fix(flaw.fixed) && (flaw.applies)(config));
    let faults = flaws
        .map(|flaw| Fault::new(Warning, "").because(format!("{version} has {}: {}", flaw.id, flaw.text)));
    faults.collect()
}

fn version_untested(config: &Config) -> Vec<Fault> {
    let version = config.version.filter(|version| *version < OLDEST);
    version.map(|version| Fault::new(Warning, "").because(version.to_string())).into_iter().collect()
}
