//! One rule, and what it finds.

use crate::{
    envoy_config::config::{Config, Origin},
    findings::Severity,
};

/// One rule.
pub struct Rule {
    /// Its stable name.
    pub code: &'static str,
    /// The severities that its findings may have. A rule that a generator of configurations cannot satisfy is a note there.
    pub severities: &'static [Severity],
    /// What was found, and what it causes.
    pub meaning: &'static str,
    /// What to do about it.
    pub fix: &'static str,
    /// The generators that have no setting for it.
    pub not_settable: &'static [Origin],
    pub(in crate::envoy_config) examine: fn(&Config) -> Vec<Fault>,
}

/// One place that breaks a rule.
pub(in crate::envoy_config) struct Fault {
    pub(in crate::envoy_config) severity: Severity,
    pub(in crate::envoy_config) path: String,
    pub(in crate::envoy_config) detail: String,
    pub(in crate::envoy_config) origin: Origin,
}

impl Fault {
    pub(super) fn new(severity: Severity, path: impl Into<String>) -> Self {
        Self { severity, path: path.into(), detail: String::new(), origin: Origin::Own }
    }

    pub(super) fn because(self, detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), ..self }
    }

    pub(super) fn of(self, origin: Origin) -> Self {
        Self { origin, ..self }
    }
}

/// The generators that have their own set of settings.
pub(super) const GENERATORS: &[Origin] = &[Origin::Istio, Origin::EnvoyGateway];
pub(super) const ISTIO: &[Origin] = &[Origin::Istio];
pub(super) const NONE: &[Origin] = &[];

/// Maximum number of names in a message.
const MAX_NAMES: usize = 5;

/// The first names of a list, and how many more there are.
pub(super) fn names(all: &[String]) -> String {
    let first = all.iter().take(MAX_NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = all.len().saturating_sub(MAX_NAMES);
    if more > 0 { format!("{first} and {more} more") } else { first }
}
