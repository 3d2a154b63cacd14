//! `target_session_attrs`: which servers are acceptable.

use std::str::FromStr;

/// A value of `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SessionAttrs {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// The current role of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Role {
    pub(super) is_standby: bool,
    /// A standby is read-only as well.
    pub(super) is_read_only: bool,
}

impl FromStr for SessionAttrs {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        Ok(match text {
            "any" => Self::Any,
            "read-write" => Self::ReadWrite,
            "read-only" => Self::ReadOnly,
            "primary" => Self::Primary,
            "standby" => Self::Standby,
            "prefer-standby" => Self::PreferStandby,
            _ => return Err("any, read-write, read-only, primary, standby or prefer-standby"),
        })
    }
}

impl SessionAttrs {
    /// The passes over all servers, in order, until one server is acceptable.
    pub(super) fn passes(self) -> &'static [Self] {
        match self {
            Self::Any => &[Self::Any],
            Self::ReadWrite => &[Self::ReadWrite],
            Self::ReadOnly => &[Self::ReadOnly],
            Self::Primary => &[Self::Primary],
            Self::Standby => &[Self::Standby],
            Self::PreferStandby => &[Self::Standby, Self::Any],
        }
    }

    /// Why a server is not acceptable.
    pub(super) fn objection(self, role: Role) -> Option<&'static str> {
        match self {
            Self::ReadWrite if role.is_read_only => Some("it is read-only"),
            Self::ReadOnly if !role.is_read_only => Some("it is not read-only"),
            Self::Primary if role.is_standby => Some("it is a standby"),
            Self::Standby if !role.is_standby => Some("it is not a standby"),
            _ => None,
        }
    }
}
