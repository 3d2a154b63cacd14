//! How keys are imported.

use std::sync::Arc;

use super::owners::OwnerRule;

/// How keys are imported.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Whose the keys of another product are.
    pub owners: OwnerRule,
    /// The bcrypt cost of hashes that are made.
    pub cost: u32,
    /// Whether everything is tried and nothing is kept.
    pub is_dry_run: bool,
}

/// A step that takes long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportStep {
    /// Keys are looked for among those that exist.
    Comparing,
    /// Hashes are made.
    Hashing,
    /// Rows are inserted.
    Inserting,
}

/// Receives the number of keys that are done in a step.
pub type ImportProgress = Arc<dyn Fn(ImportStep, usize) + Send + Sync>;
