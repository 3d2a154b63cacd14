//! Versions of Envoy.

use std::fmt;

use super::node::Node;

/// A version of Envoy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EnvoyVersion {
    /// 1.
    pub major: u16,
    /// Such as 40.
    pub minor: u16,
    /// Such as 0.
    pub patch: u16,
}

impl EnvoyVersion {
    pub(super) const fn new(minor: u16, patch: u16) -> Self {
        Self { major: 1, minor, patch }
    }

    /// Reads the version in an answer of `/server_info`, such as `9d0e…/1.40.0/Clean/RELEASE/BoringSSL`.
    pub fn from_server_info(version: &str) -> Option<Self> {
        version.split('/').find_map(Self::parse)
    }

    /// Reads `node.user_agent_build_version` of a bootstrap.
    pub(super) fn of_node(node: &Node<'_>) -> Option<Self> {
        let version = node.at(&["user_agent_build_version", "version"])?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a cast to u16 saturates"
        )]
        let part = |name| version.number(name).map_or(0, |number| number as u16);
        Some(Self { major: part("major_number"), minor: part("minor_number"), patch: part("patch") })
    }

    fn parse(text: &str) -> Option<Self> {
        // Builds of others have a suffix, such as 1.40.1-dev.
        let plain = text.split(['-', '+']).next()?;
        let mut parts = plain.split('.').map(str::parse);
        let (major, minor, patch) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
        parts.next().is_none().then_some(Self { major, minor, patch })
    }

    /// Whether a fix is in this version. `fixed` has the first version with it of each branch, in order. Older branches
    /// have no fix, newer ones have it.
    pub(super) fn has_fix(self, fixed: &[Self]) -> bool {
        let branch = |version: Self| (version.major, version.minor);
        let own = fixed.iter().find(|first| branch(**first) == branch(self));
        match (own, fixed.last()) {
            (Some(first), _) => self >= *first,
            (None, Some(newest)) => self > *newest,
            (None, None) => false,
        }
    }
}

impl fmt::Display for EnvoyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_server_info() {
        let read = |text| EnvoyVersion::from_server_info(text).map(|version| version.to_string());
        assert_eq!(read("9d0e41b3/1.40.0/Clean/RELEASE/BoringSSL").as_deref(), Some("1.40.0"));
        assert_eq!(read("9d0e41b3/1.39.2-dev/Modified/DEBUG/BoringSSL").as_deref(), Some("1.39.2"));
        assert_eq!(read("envoy"), None);
    }

    #[test]
    fn fix_is_in_its_branches_and_in_newer_ones() {
        let fixed = [EnvoyVersion::new(36, 10), EnvoyVersion::new(39, 1)];
        let has_fix = |minor, patch| EnvoyVersion::new(minor, patch).has_fix(&fixed);
        assert!(has_fix(36, 10) && has_fix(36, 11) && has_fix(39, 1) && has_fix(40, 0));
        assert!(!has_fix(36, 9) && !has_fix(39, 0) && !has_fix(35, 20) && !has_fix(38, 9));
    }
}
