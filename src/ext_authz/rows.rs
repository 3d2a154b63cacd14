//! Which part of an answer is meant: all of it, or what a key's record alone decides.

/// Rows of the tables of headers and of metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    /// Every one.
    All,
    /// Those that say the same after every request with a key: nothing of what is left of its limits.
    Lasting,
}

impl Rows {
    /// Whether a row is among them.
    pub(super) fn have(self, is_counted: bool) -> bool {
        self == Self::All || !is_counted
    }
}
