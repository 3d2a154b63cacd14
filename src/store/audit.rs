//! The audit log, `keystile_audit`: who changed which key, user, role or budget, and how. Triggers write it in the
//! transaction of the change.

use super::{Database, StoreError, schema::Schema, statement::Deadline};

/// Whether the audit log records every change.
#[derive(Debug, Default)]
pub(super) struct AuditState {
    /// What keeps it from recording a change.
    pub(super) problems: Vec<String>,
    /// What makes it slow.
    pub(super) stale: Vec<String>,
    /// The number of changes that it could not record since the last migration.
    pub(super) lost: u64,
}

impl AuditState {
    /// Whether a migration has nothing to do.
    pub(super) fn is_complete(&self) -> bool {
        self.problems.is_empty() && self.stale.is_empty() && self.lost == 0
    }
}

impl Database {
    /// What is wrong with the audit log of these tables. Nothing where there is none.
    pub(super) async fn audit_state(&self, schema: &Schema) -> Result<AuditState, StoreError> {
        let mut state = AuditState::default();
        for row in self.backend().query(Deadline::Operator, self.statements().audit_state(schema)).await? {
            let mut values = row.into_iter().map(Option::unwrap_or_default);
            let [kind, text] = std::array::from_fn(|_| values.next().unwrap_or_default());
            match &*kind {
                "problem" => state.problems.push(text),
                "stale" => state.stale.push(text),
                _ => state.lost = text.parse().unwrap_or(0),
            }
        }
        Ok(state)
    }
}
