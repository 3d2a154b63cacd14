//! Whether the change feed would be up, by the same verification as the feed's own, and the audit log complete.

use super::{FindingKind, Inspector};
use crate::{
    findings::{Location, Severity},
    revocation::{Cause, verify},
    store::{StoreError, audited_tables::AUDIT},
};

impl Inspector<'_> {
    /// Whether the audit log records every change.
    pub(super) async fn examine_audit(&mut self) -> Result<(), StoreError> {
        if !self.schema.has_table(AUDIT) {
            self.report(FindingKind::AuditMissing, Severity::Note, Location::default(), "");
            return Ok(());
        }
        let state = self.database.audit_state(&self.schema).await?;
        let lost = (state.lost > 0).then(|| format!("{} changes could not be recorded", state.lost));
        let problems = state.problems.into_iter().chain(state.stale).chain(lost).collect::<Vec<_>>();
        if !problems.is_empty() {
            let detail = problems.join("; ");
            self.report(FindingKind::AuditIncomplete, Severity::Warning, Location::table(AUDIT), &detail);
        }
        Ok(())
    }

    pub(super) async fn examine_feed(&mut self) -> Result<(), StoreError> {
        let warn = |inspector: &mut Self, kind, detail: &str| {
            inspector.report(kind, Severity::Warning, Location::default(), detail);
        };
        if !self.schema.has_log() {
            warn(self, FindingKind::Feed(Cause::LogMissing), "");
            return Ok(());
        }
        let evidence = match self.database.log_evidence(&self.schema).await {
            Ok(evidence) => evidence,
            Err(error @ (StoreError::Unfit(_) | StoreError::Timeout(_))) => {
                warn(self, FindingKind::Feed(Cause::Unreadable), &error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for problem in verify(&evidence, None).problems {
            warn(self, FindingKind::Feed(problem.cause), &problem.detail);
        }
        if evidence.compares_dropped {
            warn(self, FindingKind::FeedDroppedColumns, "");
        }
        if !evidence.notifies && !self.database.is_file() {
            let (kind, severity) = (FindingKind::FeedNotNotified, Severity::Note);
            self.report(kind, severity, Location::default(), "");
        }
        Ok(())
    }
}
