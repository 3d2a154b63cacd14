//! The lists that restrict a key, parsed once, when the record is read.

use std::fmt;

use super::{endpoint::Endpoint, model::ModelPattern, network::Network};

/// The lists that restrict a key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Restrictions {
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
    /// `allowed_extract_templates`.
    pub extract_templates: AllowList<String>,
}

/// One list that restricts a key, parsed when the record is read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AllowList<T> {
    /// NULL, `null` or `[]`: everything is allowed.
    #[default]
    Any,
    /// Only these entries are allowed.
    Only(Vec<T>),
    /// Not an array of strings, or one entry is invalid. Nothing is allowed, because the intended restriction is
    /// unknown.
    Unreadable,
}

impl<T> AllowList<T> {
    /// Whether at least one entry satisfies `is_meant`. Without a list everything is allowed.
    pub fn allows(&self, is_meant: impl FnMut(&T) -> bool) -> bool {
        match self {
            Self::Any => true,
            Self::Only(entries) => entries.iter().any(is_meant),
            Self::Unreadable => false,
        }
    }

    /// Whether there is a list, readable or not.
    pub fn restricts(&self) -> bool {
        !matches!(self, Self::Any)
    }

    /// The entries; none if there is no list, or an unreadable one.
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

impl Restrictions {
    /// The lists that cannot be read, by column.
    pub fn unreadable(&self) -> impl Iterator<Item = &'static str> {
        [
            ("allowed_models", self.models.is_unreadable()),
            ("allowed_endpoints", self.endpoints.is_unreadable()),
            ("allowed_ips", self.ips.is_unreadable()),
            ("allowed_chatbots", self.chatbots.is_unreadable()),
            ("allowed_agents", self.agents.is_unreadable()),
            ("allowed_extract_templates", self.extract_templates.is_unreadable()),
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
