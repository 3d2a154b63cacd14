//! Envoy's matchers of header names.

use regex::{Regex, RegexBuilder};

use super::node::Node;

/// Maximum size of a compiled expression in bytes.
const MAX_REGEX: usize = 1 << 20;

/// A matcher of lower-case header names.
#[derive(Debug, Clone)]
pub(super) enum NameMatcher {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    Regex(Regex),
    /// One that is not understood. It matches nothing.
    Unknown,
}

impl NameMatcher {
    /// Reads a `StringMatcher`. Names of headers are lower-case in Envoy, so a pattern with upper case and without
    /// `ignore_case` matches none.
    pub(super) fn read(node: &Node<'_>) -> Self {
        let ignore_case = node.flag("ignore_case");
        let text = |name: &str| {
            let text = node.text(name)?;
            Some(if ignore_case { text.to_ascii_lowercase() } else { text.to_owned() })
        };
        let simple = text("exact").map(Self::Exact).or_else(|| text("prefix").map(Self::Prefix));
        let simple = simple.or_else(|| text("suffix").map(Self::Suffix));
        let simple = simple.or_else(|| text("contains").map(Self::Contains));
        simple.or_else(|| Self::regex(&node.field("safe_regex")?)).unwrap_or(Self::Unknown)
    }

    /// Reads a `RegexMatcher`, which must match the whole name.
    pub(super) fn regex(node: &Node<'_>) -> Option<Self> {
        let pattern = format!("^(?:{})$", node.text("regex")?);
        RegexBuilder::new(&pattern).size_limit(MAX_REGEX).build().ok().map(Self::Regex)
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(text) => name == text,
            Self::Prefix(text) => name.starts_with(text.as_str()),
            Self::Suffix(text) => name.ends_with(text.as_str()),
            Self::Contains(text) => name.contains(text.as_str()),
            Self::Regex(regex) => regex.is_match(name),
            Self::Unknown => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn matches(matcher: Value, name: &str) -> bool {
        NameMatcher::read(&Node::root(&matcher)).matches(name)
    }

    #[test]
    fn names_are_matched_as_envoy_matches_them() {
        assert!(matches(json!({ "prefix": "x-auth-" }), "x-auth-result"));
        assert!(!matches(json!({ "prefix": "X-Auth-" }), "x-auth-result"), "names are lower-case");
        assert!(matches(json!({ "prefix": "X-Auth-", "ignore_case": true }), "x-auth-result"));
        assert!(matches(json!({ "exact": "a" }), "a") && !matches(json!({ "exact": "a" }), "ab"));
        assert!(matches(json!({ "suffix": "-result" }), "x-auth-result"));
        assert!(matches(json!({ "contains": "auth" }), "x-auth-result"));
        assert!(matches(json!({ "safe_regex": { "regex": "x[-_]auth[-_].*" } }), "x_auth_user_id"));
        assert!(!matches(json!({ "safe_regex": { "regex": "x-auth" } }), "x-auth-result"), "the whole name");
        assert!(!matches(json!({ "safe_regex": { "regex": "a|x-auth-b" } }), "x-auth-bc"));
    }

    #[test]
    fn what_is_not_understood_matches_nothing() {
        for matcher in [
            json!({}),
            json!({ "custom": {} }),
            json!({ "safe_regex": { "regex": "(" } }),
            json!({ "safe_regex": { "regex": "((a{1000}){1000}){1000}" } }),
        ] {
            assert!(!matches(matcher.clone(), "x-auth-result"), "{matcher}");
        }
    }
}
