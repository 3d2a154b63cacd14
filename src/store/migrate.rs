//! Creates the tables, the change log and its triggers where they are missing. Tables of other applications stay as
//! they are.

use super::{
    Database, StoreError,
    audited_tables::AUDIT,
    schema::{PROOFS, TABLES},
    statement::{Deadline, Statement},
};
use crate::{
    dependencies::ErrorText,
    revocation::{Cause, Evidence, Problem, verify},
};

/// The outcome of a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// Tables that were created.
    pub created: Vec<&'static str>,
    /// Tables that existed, and were not changed.
    pub kept: Vec<&'static str>,
    /// Whether the database logs its changes now.
    pub log: LogInstallation,
    /// Whether the database audits its changes now.
    pub audit: LogInstallation,
    /// Whether the table of proofs was created.
    pub proofs_created: bool,
    /// Whether the tables of rotated keys were created.
    pub rotations_created: bool,
    /// Problems that an operator should solve, each with its fix.
    pub warnings: Vec<String>,
}

/// The outcome of installing the change log, or the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogInstallation {
    /// It was created, or updated.
    Installed,
    /// It was complete already.
    Kept,
    /// The database did not allow it, for this reason.
    Refused(String),
}

impl Database {
    /// Creates missing tables, and the change log. Can be repeated, and run by two processes at once. `notify`: whether
    /// the database notifies instances of changes, or `None` to keep that as it is.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer, refuses, or has tables that do not fit.
    pub async fn migrate(&self, notify: Option<bool>) -> Result<Migration, StoreError> {
        let schema = self.backend().read_schema(Deadline::Operator).await?;
        let (kept, created): (Vec<_>, Vec<_>) = TABLES.into_iter().partition(|table| schema.has_table(table));
        if !created.is_empty() {
            self.backend().execute_all(self.statements().create_tables(&created)).await?;
        }
        // Before the log, whose triggers watch them.
        let has_rotations = schema.has_rotations();
        let rotations =
            if has_rotations { None } else { self.create(self.statements().create_rotations()).await? };
        let log = self.install_log(notify).await?;
        let has_proofs = schema.has_table(PROOFS);
        let refusal = if has_proofs { None } else { self.create(self.statements().create_proofs()).await? };
        let management = self.create(self.statements().create_management()).await?;
        let audit = self.install_audit().await?;
        self.forget_tables();
        let mut warnings = self.log_problems().await?;
        if let Some(reason) = &refusal {
            warnings.push(format!(
                "no table of proofs: {reason}; until it exists, a restart without Redis costs one bcrypt for each \
                 key. To create it, run `keystile migrate` as the owner of the tables"
            ));
        }
        if let Some(reason) = &management {
            warnings.push(format!(
                "no tables of the management API: {reason}; `keystile management` needs them. To create them, run \
                 `keystile migrate` as the owner of the tables"
            ));
        }
        if let Some(reason) = &rotations {
            warnings.push(format!(
                "no tables of rotated keys: {reason}; until they exist, no key can be rotated. To create them, run \
                 `keystile migrate` as the owner of the tables"
            ));
        }
        if let LogInstallation::Refused(reason) = &log {
            warnings.push(format!(
                "no log of changes: {reason}; until it exists, a changed or revoked key is noticed within 30 s. \
                 To create it, run `keystile migrate` as the owner of the tables"
            ));
        }
        if let LogInstallation::Refused(reason) = &audit {
            warnings.push(format!(
                "no audit log: {reason}; changes of keys and users are not recorded. To create it, run `keystile \
                 migrate` as the owner of the tables"
            ));
        }
        if !self.prefix_is_indexed().await? {
            warnings.push(
                "api_keys has no index on key_prefix, so every look-up reads the whole table; \
                 mend it with: CREATE INDEX api_keys_key_prefix ON api_keys (key_prefix);"
                    .to_owned(),
            );
        }
        let proofs_created = !has_proofs && refusal.is_none();
        let rotations_created = !has_rotations && rotations.is_none();
        Ok(Migration { created, kept, log, audit, proofs_created, rotations_created, warnings })
    }

    /// Installs the change log. A refusal is no failure: there are other ways to notice changes.
    async fn install_log(&self, notify: Option<bool>) -> Result<LogInstallation, StoreError> {
        let schema = self.backend().read_schema(Deadline::Operator).await?.fit()?;
        // An unreadable log, such as one of an earlier version, is replaced.
        let reading = if schema.has_log() { self.read_log(&schema, None).await.ok() } else { None };
        let evidence = reading.map(|reading| reading.evidence);
        let notifies = notify.or(evidence.as_ref().map(|evidence| evidence.notifies)).unwrap_or(true);
        let is_complete = |evidence: &Evidence| {
            verify(evidence, None).problems.is_empty()
                && !evidence.compares_dropped
                && (self.is_file() || evidence.notifies == notifies)
        };
        if evidence.as_ref().is_some_and(is_complete) {
            return Ok(LogInstallation::Kept);
        }
        match self.backend().install_log(&schema, notifies).await {
            Ok(()) => Ok(LogInstallation::Installed),
            Err(StoreError::Unfit(reason)) => Ok(LogInstallation::Refused(reason.to_string())),
            Err(error) => Err(error),
        }
    }

    /// Installs the audit log. A refusal is no failure: Keystile works without it.
    async fn install_audit(&self) -> Result<LogInstallation, StoreError> {
        let schema = self.backend().read_schema(Deadline::Operator).await?.fit()?;
        if schema.has_table(AUDIT) && self.audit_state(&schema).await?.is_complete() {
            return Ok(LogInstallation::Kept);
        }
        match self.backend().install_audit(&schema).await {
            Ok(()) => Ok(LogInstallation::Installed),
            Err(StoreError::Unfit(reason)) => Ok(LogInstallation::Refused(reason.to_string())),
            Err(error) => Err(error),
        }
    }

    /// Creates tables of Keystile's own. Returns the reason if the database does not allow it, which is no failure.
    async fn create(&self, tables: Vec<Statement>) -> Result<Option<ErrorText>, StoreError> {
        match self.backend().execute_all(tables).await {
            Ok(()) => Ok(None),
            Err(StoreError::Unfit(reason)) => Ok(Some(reason)),
            Err(error) => Err(error),
        }
    }

    /// Why instances cannot rely on the log, although it was installed.
    async fn log_problems(&self) -> Result<Vec<String>, StoreError> {
        let schema = self.backend().read_schema(Deadline::Operator).await?.fit()?;
        if !schema.has_log() {
            return Ok(Vec::new());
        }
        let problems = match self.read_log(&schema, None).await {
            Ok(reading) => verify(&reading.evidence, None).problems,
            Err(error) => vec![Cause::Unreadable.with(error.to_string())],
        };
        let describe = |problem: Problem| {
            format!("{problem}: a changed or revoked key is noticed within 30 s; {}", problem.fix)
        };
        Ok(problems.into_iter().map(describe).collect())
    }

    async fn prefix_is_indexed(&self) -> Result<bool, StoreError> {
        let schema = self.backend().read_schema(Deadline::Operator).await?;
        let index = self.statements().index_on(&schema, "api_keys", "key_prefix");
        Ok(!self.backend().query(Deadline::Operator, index).await?.is_empty())
    }
}
