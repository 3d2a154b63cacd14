//! Headers of our names that came with the request: whoever sent it wrote them, and nobody may believe them.

use crate::{
    config::RemoveHeaders,
    ext_authz::{headers::TABLE, wire::Http},
};

/// Which of our headers the request may have had.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::ext_authz) enum Copies {
    /// Any, since nobody looked.
    Any,
    /// These.
    Seen(Vec<&'static str>),
}

impl Copies {
    pub(super) fn find(http: &Http<'_>, remove: RemoveHeaders) -> Self {
        if remove == RemoveHeaders::All {
            return Self::Any;
        }
        let raw = http.header_map.iter().map(|(name, _)| *name);
        let names = http.headers.iter().map(|(name, _)| *name).chain(raw);
        Self::Seen(names.filter_map(ours).collect())
    }

    /// Whether a client's own copy of this header has to be taken away.
    pub(in crate::ext_authz) fn may_have(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Seen(names) => names.contains(&name),
        }
    }

    /// Whether it is what an honest client's request has, as nearly all are.
    pub(in crate::ext_authz) fn is_usual(&self) -> bool {
        match self {
            Self::Any => true,
            Self::Seen(names) => names.is_empty(),
        }
    }
}

/// The header of our table that has this name.
fn ours(name: &str) -> Option<&'static str> {
    let mut names = TABLE.iter().map(|header| header.name);
    names.find(|ours| ours.eq_ignore_ascii_case(name))
}
