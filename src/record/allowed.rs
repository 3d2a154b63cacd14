//! The lists that restrict a key, parsed once, when its record is read.

use std::fmt;

use super::{endpoint::Endpoint, model::ModelPattern, network::Network};

/// The lists that restrict a key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allowed {
    /// `allowed_models`.
    pub models: AllowList<ModelPattern>,
    /// `allowed_endpoints`.
    pub endpoints: AllowList<Endpoint>,
    /// `allowed_ips`.
    pub ips: AllowList<Network>,
    /// `allowed_chatbots`.
    pub chatbots: AllowList<String>,
    /// `allowed_agents`.
    pub agents: AllowList<String>,
}

/// One restricting list, parsed when the record is read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AllowList<T> {
    /// NULL, `null` or `[]`: everything.
    #[default]
    Any,
    /// These and nothing else.
    Only(Vec<T>),
    /// Not an array of strings, or one of them means nothing: nothing is allowed, since nobody can
    /// tell what was meant.
    Unreadable,
}

impl<T> AllowList<T> {
    /// Whether something may pass that `is_meant` by an entry.
    pub fn allows(&self, is_meant: impl FnMut(&T) -> bool) -> bool {
        match self {
            Self::Any => true,
            Self::Only(entries) => entries.iter().any(is_meant),
            Self::Unreadable => false,
        }
    }

    /// Whether there is a list at all, readable or not.
    pub fn restricts(&self) -> bool {
        !matches!(self, Self::Any)
    }

    /// The entries, where there is a list of them.
    pub fn entries(&self) -> &[T] {
        match self {
            Self::Only(entries) => entries,
            Self::Any | Self::Unreadable => &[],
        }
    }

    fn is_unreadable(&self) -> bool {
        matches!(self, Self::Unreadable)
    }
}

impl Allowed {
    /// The lists that nobody can read, by column.
    pub fn unreadable(&self) -> impl Iterator<Item = &'static str> {
        [
            ("allowed_models", self.models.is_unreadable()),
            ("allowed_endpoints", self.endpoints.is_unreadable()),
            ("allowed_ips", self.ips.is_unreadable()),
            ("allowed_chatbots", self.chatbots.is_unreadable()),
            ("allowed_agents", self.agents.is_unreadable()),
        ]
        .into_iter()
        .filter(|(_, unreadable)| *unreadable)
        .map(|(column, _)| column)
    }
}

impl<T: fmt::Display> fmt::Display for AllowList<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Unreadable => f.write_str("unreadable, so none"),
            Self::Only(entries) => {
                let entries: Vec<_> = entries.iter().map(T::to_string).collect();
                f.write_str(&entries.join(", "))
            }
        }
    }
}
