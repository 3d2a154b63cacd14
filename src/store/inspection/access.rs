//! The rights of the role that the command runs as, and of a file's users.

use super::{FindingKind, Inspector};
use crate::{
    findings::{Location, Severity},
    store::{
        StoreError,
        schema::{CHANGES, PROOFS},
    },
};

impl Inspector<'_> {
    pub(super) async fn examine_access(&mut self) -> Result<(), StoreError> {
        if let Some(statement) = self.database.statements().access(&self.schema) {
            let rows = self.query(statement).await?;
            for values in rows {
                let mut values = values.into_iter().map(Option::unwrap_or_default);
                let [kind, table, right, columns] =
                    std::array::from_fn(|_| values.next().unwrap_or_default());
                self.report_access(&kind, &table, &right, &columns);
            }
        }
        if let Some(access) = self.database.backend().file_access() {
            if access.others_read || access.others_write {
                let severity = if access.others_write { Severity::Error } else { Severity::Warning };
                let detail = if access.others_write { "they can write it" } else { "they can read it" };
                self.report(FindingKind::FileMode, severity, Location::default(), detail);
            }
            if !access.is_writable {
                self.report(FindingKind::FileReadOnly, Severity::Warning, Location::default(), "");
            }
        }
        Ok(())
    }

    fn report_access(&mut self, kind: &str, table: &str, right: &str, columns: &str) {
        match kind {
            "right" => {
                let detail =
                    if columns.is_empty() { right.to_owned() } else { format!("{right} ({columns})") };
                let severity = match (table, right) {
                    // Not needed with Redis.
                    (PROOFS, _) => Severity::Note,
                    (CHANGES, _) | (_, "UPDATE") => Severity::Warning,
                    _ => Severity::Error,
                };
                self.report(FindingKind::RightMissing, severity, Location::table(table), &detail);
            }
            "rows" => self.report(FindingKind::RowsHidden, Severity::Error, Location::table(table), ""),
            _ => self.report(FindingKind::RoleUnlimited, Severity::Note, Location::default(), ""),
        }
    }
}
