//! Whether the change feed would be up, by the same verification as the feed's own.

use super::{FindingKind, Inspector};
use crate::{
    findings::{Location, Severity},
    revocation::{Cause, verify},
    store::StoreError,
};

impl Inspector<'_> {
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
