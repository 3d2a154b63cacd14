//! What a change did, or would do, to a row.

use serde::Serialize;
use serde_json::Value;

use super::{RowVersion, display_row::DisplayRow};

/// A row before and after a change. Both are the same if nothing changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The row as the change found it.
    pub before: DisplayRow,
    /// The row that was committed.
    pub after: DisplayRow,
}

/// One column that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Its name.
    pub field: &'static str,
    /// Its value before.
    pub before: Value,
    /// Its value after.
    pub after: Value,
}

impl Change {
    /// The columns that differ, without those that use changes.
    pub fn differences(&self) -> Vec<Difference> {
        let differs = |(field, after): (&'static str, &Value)| {
            let before = self.before.get(field);
            let is_different = super::columns::is_versioned(field) && before != after;
            is_different.then(|| Difference { field, before: before.clone(), after: after.clone() })
        };
        self.after.values().filter_map(differs).collect()
    }

    /// Whether nothing changed, so that nothing was written.
    pub fn is_empty(&self) -> bool {
        self.differences().is_empty()
    }

    /// The version of the row before.
    pub fn version_before(&self) -> RowVersion {
        RowVersion::of(&self.before)
    }
}
