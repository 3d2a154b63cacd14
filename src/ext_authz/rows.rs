//! Which part of an answer is meant: what a key's record decides, or what each of its requests changes.

/// Rows of the tables of headers and of metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    /// Every one.
    All,
    /// Those that say the same after every request with a key.
    Lasting,
    /// Those that say what is left of the key's limits.
    Counted,
}

impl Rows {
    /// Whether a row is among them.
    pub(super) fn have(self, is_counted: bool) -> bool {
        match self {
            Self::All => true,
            Self::Lasting => !is_counted,
            Self::Counted => is_counted,
        }
    }
}
