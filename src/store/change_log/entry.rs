//! An entry of the change log, as its row has it.

use std::time::Duration;

use crate::{
    credential::Prefix,
    revocation::{CAPACITY, Change, LoggedChange},
    store::SqlValue,
};

/// Maximum number of entries of one read, so that a change of very many keys is read within a call's deadline. Beyond
/// it, everything is dropped, so the keys need not be known.
pub const MAX_ENTRIES: usize = CAPACITY;

/// An entry. It names a user or a key by its id, and the reader looks up the prefixes.
pub(super) struct LogEntry {
    pub(super) subject: EntrySubject,
    id: u64,
    ago: Duration,
    by_command: bool,
}

/// The keys that an entry concerns.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum EntrySubject {
    AllKeys,
    Prefix(Prefix),
    User(i64),
    Key(i64),
}

impl LogEntry {
    /// Decodes a row of the log. None where it names a prefix that no credential can have.
    pub(super) fn decode(values: &[SqlValue]) -> Option<Self> {
        let [_, prefix, user, key, id, ago, source] = values else { return None };
        let number = |value: &SqlValue| value.as_deref().map(str::parse::<i64>);
        let subject = match (prefix, number(user), number(key)) {
            (Some(prefix), _, _) => EntrySubject::Prefix(Prefix::parse(prefix).ok()?),
            (None, _, Some(Ok(key))) => EntrySubject::Key(key),
            (None, Some(Ok(user)), None) => EntrySubject::User(user),
            _ => EntrySubject::AllKeys,
        };
        let ago = ago.as_deref().and_then(|ago| ago.parse().ok()).unwrap_or(0.0);
        Some(Self {
            subject,
            id: id.as_deref()?.parse().ok()?,
            ago: Duration::try_from_secs_f64(ago).unwrap_or_default(),
            by_command: source.as_deref() == Some("command"),
        })
    }

    /// The entry for one key, or for all keys.
    pub(super) fn logged(&self, key: Option<Prefix>) -> LoggedChange {
        LoggedChange { change: Change { key, id: self.id }, ago: self.ago, by_command: self.by_command }
    }

    /// The entry for the feed, unless its keys have to be looked up.
    pub(super) fn as_logged(&self) -> Option<LoggedChange> {
        match self.subject {
            EntrySubject::AllKeys => Some(self.logged(None)),
            EntrySubject::Prefix(prefix) => Some(self.logged(Some(prefix))),
            EntrySubject::User(_) | EntrySubject::Key(_) => None,
        }
    }
}
