//! What an import cannot carry over, by name and count.

use std::collections::BTreeMap;

/// Losses of one file. Those that restrict keys are apart.
#[derive(Debug, Clone, Default)]
pub(super) struct Losses {
    restrictions: BTreeMap<String, u64>,
    others: BTreeMap<String, u64>,
}

/// Names are other people's text.
const MAX_NAME: usize = 60;

impl Losses {
    /// Counts a restriction that is lost.
    pub(super) fn restriction(&mut self, name: impl Into<String>) {
        *self.restrictions.entry(name.into()).or_default() += 1;
    }

    /// Counts something else that is lost.
    pub(super) fn note(&mut self, name: impl Into<String>) {
        self.note_times(name, 1);
    }

    /// The same, several times.
    pub(super) fn note_times(&mut self, name: impl Into<String>, count: u64) {
        *self.others.entry(name.into()).or_default() += count;
    }

    /// Whether a restriction is lost.
    pub(super) fn restricts(&self) -> bool {
        !self.restrictions.is_empty()
    }

    /// The restrictions, one a line.
    pub(super) fn restrictions(&self) -> String {
        lines(self.restrictions.iter())
    }

    /// Everything, one a line.
    pub(super) fn all(&self) -> String {
        lines(self.restrictions.iter().chain(&self.others))
    }
}

/// A name from a file, as it is shown.
pub(super) fn shown(name: &str) -> String {
    name.chars().take(MAX_NAME).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn lines<'a>(losses: impl Iterator<Item = (&'a String, &'a u64)>) -> String {
    losses.map(|(name, count)| format!("  {name} ({count})")).collect::<Vec<_>>().join("\n")
}
