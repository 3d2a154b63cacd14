//! Which changes of headers Envoy takes.

use crate::envoy_config::matcher::NameMatcher;

/// Which changes of headers Envoy takes from Keystile.
#[derive(Debug)]
pub(in crate::envoy_config) struct MutationRules {
    pub(in crate::envoy_config) path: String,
    pub(in crate::envoy_config) disallows_all: bool,
    pub(in crate::envoy_config) allowed: Option<NameMatcher>,
    pub(in crate::envoy_config) disallowed: Option<NameMatcher>,
}

impl MutationRules {
    /// Whether Envoy takes a change of this header, as its `HeaderMutationRules` say.
    pub(in crate::envoy_config) fn admit(&self, name: &str) -> bool {
        let matches =
            |matcher: &Option<NameMatcher>| matcher.as_ref().is_some_and(|matcher| matcher.matches(name));
        !matches(&self.disallowed) && (matches(&self.allowed) || !self.disallows_all)
    }
}
