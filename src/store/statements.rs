//! The statements that a backend supplies, beyond those that the [`Dialect`]'s expressions are enough for.

use std::time::Duration;

use super::{
    actor::{Action, Actor},
    dialect::Dialect,
    schema::Schema,
    statement::{Rows, Statement},
    watched_tables::WatchedTable,
};
use crate::revocation::Since;

/// The SQL of a backend.
pub(crate) trait Statements: Dialect {
    /// Selects what [`Schema::new`] reads.
    fn read_schema(&self) -> Statement;

    /// An expression for the log position that a look-up saw; NULL where there is none.
    fn log_position(&self) -> &'static str;

    /// An expression for how far the server's data lags behind its primary, in seconds; NULL on a primary.
    fn replication_lag(&self) -> &'static str;

    /// Selects the evidence about the change log, and its entries since the previous read, at most `limit`.
    fn read_log(
        &self,
        schema: &Schema,
        tables: &[WatchedTable],
        since: Option<&Since>,
        limit: usize,
    ) -> Statement;

    /// Deletes the entries of the change log that were first seen more than `age` ago, and marks new ones as seen. The
    /// newest entry stays, since readers recognise the log by it.
    fn prune_log(&self, schema: &Schema, age: Duration) -> [Statement; 2];

    /// The column by which an entry of the change log is confirmed, as text.
    fn entry_id(&self) -> &'static str;

    /// The parts of the statement that writes a batch of usage, which is its one parameter: a JSON array of objects
    /// with `id`, `n` and `last`. Column types are those of `last_used_at` and `total_requests`.
    fn usage_update(&self, last_used_at: &ColumnRef<'_>, total_requests: &ColumnRef<'_>) -> UsageUpdate;

    /// Selects whether a transaction was `committed` or `aborted`. None where each write is answered.
    fn transaction_status(&self, transaction: &str) -> Option<Statement>;

    /// Stores proofs, from a JSON array of objects with the columns of the table. Those of the same key and credential
    /// are replaced.
    fn store_proofs(&self, proofs: &str) -> [Statement; 2];

    /// Deletes the proofs from before this time, in milliseconds since 1970.
    fn prune_proofs(&self, oldest: i64) -> Statement;

    /// Creates these tables, of `users` and `api_keys`, where they are missing.
    fn create_tables(&self, tables: &[&str]) -> Vec<Statement>;

    /// Creates the table of proofs where it is missing.
    fn create_proofs(&self) -> Vec<Statement>;

    /// Creates the tables of rotated keys where they are missing.
    fn create_rotations(&self) -> Vec<Statement>;

    /// Creates the tables of the management API where they are missing.
    fn create_management(&self) -> Vec<Statement>;

    /// Selects a row if an index begins with this column and covers all rows. A view is taken to have one.
    fn index_on(&self, schema: &Schema, table: &str, column: &str) -> Statement;

    /// Selects what is unusual about the role's rights, as rows of kind, table, right and columns. None where there are no
    /// roles.
    fn access(&self, schema: &Schema) -> Option<Statement>;

    /// Selects a row if this role may update this column. None where there are no roles.
    fn may_update(&self, schema: &Schema, table: &str, column: &str) -> Option<Statement>;

    /// Selects the columns of a table of an application: each one's name, its name in SQL, and `computed` or `default` if a
    /// copy of a row must leave it to the database. `default` is for a column whose value no two rows may share and that
    /// has a default.
    fn columns(&self, schema: &Schema, table: &str) -> Statement;

    /// Inserts one budget by this statement, which has no RETURNING, and notes it as a copy of the budget `first`.
    fn copy_budget(&self, schema: &Schema, insert: Statement, first: i64) -> Vec<Statement>;

    /// Selects what is wrong with the audit log, as rows of a kind and a text: `problem` keeps it from recording a change,
    /// `stale` makes it slow, `lost` is the number of changes that it could not record.
    fn audit_state(&self, schema: &Schema) -> Statement;

    /// An expression for the entries of the audit log that a statement saw.
    fn audit_position(&self) -> &'static str;

    /// A condition: an entry `a` of the audit log was committed since the position in the parameter of this number.
    fn audit_since(&self, param: usize) -> String;

    /// Tells the audit log, at the start of a transaction, who makes which change in it. A required statement among them
    /// returns no row if the audit log cannot record the change.
    fn begin_change(&self, schema: &Schema, actor: &Actor, action: Action) -> Vec<Statement>;

    /// Removes what [`Statements::begin_change`] left, at the end of the transaction.
    fn end_change(&self, schema: &Schema) -> Option<Statement>;
    /// Selects what [`Statements::grants`] reads. None where there are no roles.
    fn granted_relations(&self, schema: &Schema) -> Option<Statement>;

    /// The statements that give `role`, and a role for the commands that write, the rights that they need.
    fn grants(&self, schema: &Schema, used: &[UsedColumns], relations: Rows, role: &str) -> String;

    /// Moves the sequence of key ids past ids that were given explicitly. None where the database does so itself.
    fn advance_key_ids(&self) -> Option<Statement>;
}

/// The columns of a table that Keystile's statements name.
pub(crate) struct UsedColumns {
    pub(crate) table: &'static str,
    /// Read by instances, and by the commands that only read.
    pub(crate) read: Vec<&'static str>,
    /// Written to new rows by commands.
    pub(crate) inserted: Vec<&'static str>,
    /// Written to existing rows by commands.
    pub(crate) updated: Vec<&'static str>,
}

/// A usage column of `api_keys`: its name in SQL, and its type.
pub(crate) struct ColumnRef<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: &'a str,
}

/// The parts of the statement that writes usage to rows of `api_keys`, named `k`.
pub(crate) struct UsageUpdate {
    /// The batch, as rows named `d`.
    pub(crate) batch: &'static str,
    /// The key's id in the batch.
    pub(crate) key: &'static str,
    /// The new value of `last_used_at`.
    pub(crate) last_used_at: String,
    /// A condition: the row's `last_used_at` is at least [`LAST_USED_INTERVAL`] older than the new one.
    pub(crate) is_older: String,
    /// The new value of `total_requests`.
    pub(crate) total_requests: String,
}

/// Minimum time between two writes of a key's `last_used_at`, by all instances together.
pub(crate) const LAST_USED_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// The table scripts of a backend's migration, cut into statements, for these tables only.
pub(crate) fn sections(text: &'static str, tables: &[&str]) -> Vec<Statement> {
    let sections = text.split("-- table: ").filter_map(|section| section.split_once('\n'));
    sections.filter(|(table, _)| tables.contains(table)).flat_map(|(_, body)| script(body)).collect()
}

/// A script, cut into statements.
pub(crate) fn script(text: &'static str) -> Vec<Statement> {
    text.split(';').filter(|sql| !sql.trim().is_empty()).map(Statement::plain).collect()
}
