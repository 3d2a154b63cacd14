//! Looks at the tables and rows of a database for what will not work as its owner thinks. Writes nothing.

use time::OffsetDateTime;

use super::{
    Database, StoreError,
    audited_tables::AUDIT,
    schema::{ROTATIONS, Schema},
    statement::{Deadline, Rows, Statement, first_value},
};
use crate::findings::{Finding, Location, Severity};

mod access;
mod batches;
mod budgets;
mod feed;
mod keys;
mod kind;
mod rotations;
mod tables;
mod tally;
mod unread;

pub use kind::FindingKind;

/// The result of an inspection.
#[derive(Debug, Default)]
pub struct Inspection {
    /// The number of keys that were examined.
    pub keys: u64,
    /// The number of budgets that were examined.
    pub budgets: u64,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// Receives the number of rows that were examined so far.
pub type InspectionProgress<'a> = &'a (dyn Fn(u64) + Sync);

/// One inspection, and what it has found so far.
struct Inspector<'a> {
    database: &'a Database,
    schema: Schema,
    now: OffsetDateTime,
    progress: InspectionProgress<'a>,
    inspection: Inspection,
}

impl Database {
    /// Examines the tables and every row. `now` is the time by which keys expire.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer.
    pub async fn inspect(
        &self,
        now: OffsetDateTime,
        progress: InspectionProgress<'_>,
    ) -> Result<Inspection, StoreError> {
        let schema = self.backend().read_schema(Deadline::Operator).await?;
        let inspection = Inspection::default();
        let mut inspector = Inspector { database: self, schema, now, progress, inspection };
        if inspector.has_tables() {
            inspector.examine().await?;
        }
        Ok(inspector.inspection)
    }
}

impl Inspector<'_> {
    async fn examine(&mut self) -> Result<(), StoreError> {
        self.examine_feed().await?;
        let examined = self.examine_audit().await;
        self.tolerate(Location::table(AUDIT), examined)?;
        let examined = self.examine_access().await;
        self.tolerate(Location::default(), examined)?;
        self.examine_tables().await?;
        let unread = self.examine_columns();
        let examined = self.examine_keys(&unread).await;
        self.tolerate(Location::table("api_keys"), examined)?;
        if self.schema.has_budgets() {
            let examined = self.examine_budgets().await;
            self.tolerate(Location::table("budgets"), examined)?;
        }
        if self.schema.has_rotations() {
            let examined = self.examine_rotations().await;
            self.tolerate(Location::table(ROTATIONS), examined)?;
        }
        Ok(())
    }

    async fn query(&self, statement: Statement) -> Result<Rows, StoreError> {
        self.database.backend().query(Deadline::Operator, statement).await
    }

    async fn count(&self, table: &str) -> Result<u64, StoreError> {
        let sql = format!("SELECT CAST(count(*) AS text) FROM {}", self.schema.relation(table));
        let count = first_value(self.query(Statement::plain(sql)).await?);
        Ok(count.and_then(|count| count.parse().ok()).unwrap_or_default())
    }

    fn report(&mut self, kind: FindingKind, severity: Severity, location: Location, detail: &str) {
        self.inspection.findings.push(kind.finding(severity, location, detail));
    }

    /// Reports that something could not be examined, so that the rest can be.
    fn tolerate(&mut self, location: Location, result: Result<(), StoreError>) -> Result<(), StoreError> {
        match result {
            Err(error @ (StoreError::Unfit(_) | StoreError::Timeout(_) | StoreError::Locked(_))) => {
                self.report(FindingKind::NotExamined, Severity::Error, location, &error.to_string());
                Ok(())
            }
            result => result,
        }
    }
}
