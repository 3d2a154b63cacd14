//! The two kinds of database. This is the one place that tells them apart.

use std::{path::Path, sync::Arc, time::Duration};

use super::{
    StoreError,
    postgres::{self, Confirmations, PostgresPool, PostgresStatements},
    schema::Schema,
    sqlite::{FileAccess, SQLITE_POLL, SqliteFile, SqliteStatements},
    statement::{Access, ConnectionCounts, Deadline, Progress, Rows, Statement, Step, TransactionOutcome},
    statements::Statements,
};
use crate::{
    addresses::Resolver,
    config::{DatabaseOptions, DatabaseUrl},
    revocation::Signals,
    usage::WriteOutcome,
};

/// A database of one kind.
pub(crate) enum Backend {
    Postgres(PostgresPool),
    Sqlite(SqliteFile),
}

impl Backend {
    /// Does not connect. The database need not be up, nor the file exist.
    pub(crate) fn new(
        options: &DatabaseOptions,
        resolver: &Arc<dyn Resolver>,
        access: Access,
    ) -> Result<Self, StoreError> {
        let (timeout, connections) = (options.database_timeout, options.database_connections);
        let url = match &options.database_url {
            DatabaseUrl::Sqlite(path) => {
                return Ok(Self::Sqlite(SqliteFile::new(path, timeout, connections, access)));
            }
            DatabaseUrl::Postgres(url) => url,
        };
        let feed_url = match &options.change_feed_url {
            Some(DatabaseUrl::Postgres(feed_url)) => Some(feed_url),
            Some(DatabaseUrl::Sqlite(_)) => {
                return Err(StoreError::Unfit("--change-feed-url is no Postgres URL".into()));
            }
            None => None,
        };
        PostgresPool::new(url, feed_url, resolver, timeout, connections, access).map(Self::Postgres)
    }

    /// The name in metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::Sqlite(_) => "sqlite",
        }
    }

    pub(crate) fn is_file(&self) -> bool {
        matches!(self, Self::Sqlite(_))
    }

    /// The SQL of this backend.
    pub(crate) fn statements(&self) -> &'static dyn Statements {
        match self {
            Self::Postgres(_) => &PostgresStatements,
            Self::Sqlite(_) => &SqliteStatements,
        }
    }

    /// Which of several databases of this kind answers, as far as the process itself can tell: a SQLite file by its
    /// device and inode. Empty for Postgres, whose statements return it.
    pub(crate) fn identity(&self) -> String {
        match self {
            Self::Postgres(_) => String::new(),
            Self::Sqlite(file) => file.identity(),
        }
    }

    /// Who can use the file. None for a server, and where there is no file.
    pub(crate) fn file_access(&self) -> Option<FileAccess> {
        match self {
            Self::Postgres(_) => None,
            Self::Sqlite(file) => file.access(),
        }
    }

    /// Its connections.
    pub(crate) fn connections(&self) -> ConnectionCounts {
        match self {
            Self::Postgres(pool) => pool.connections(),
            Self::Sqlite(file) => file.connections(),
        }
    }

    /// Closes all connections, those in use once they are free.
    pub(crate) fn reconnect(&self) {
        match self {
            Self::Postgres(pool) => pool.reconnect(),
            Self::Sqlite(file) => file.reconnect(),
        }
    }

    pub(crate) async fn query(&self, deadline: Deadline, statement: Statement) -> Result<Rows, StoreError> {
        match self {
            Self::Postgres(pool) => pool.query(deadline, &statement).await,
            Self::Sqlite(file) => file.query(deadline, statement).await,
        }
    }

    /// Reads which tables there are.
    pub(crate) async fn read_schema(&self, deadline: Deadline) -> Result<Schema, StoreError> {
        let rows = self.query(deadline, self.statements().read_schema()).await?;
        Ok(Schema::new(self.statements(), rows))
    }

    /// Runs one statement, so that it is known or can be found out later whether it was committed.
    pub(crate) async fn write_once(&self, statement: Statement) -> WriteOutcome<StoreError> {
        match self {
            Self::Postgres(pool) => pool.write_once(&statement).await,
            // The file is written by this process: an error means that nothing was written.
            Self::Sqlite(file) => match file.query(Deadline::Operator, statement).await {
                Ok(_) => WriteOutcome::Done,
                Err(error) => WriteOutcome::Failed(error),
            },
        }
    }

    /// Runs the statements in one transaction, all or nothing. With `needs_rows`, a statement that returns no row has
    /// failed too, and those after it are tried to find out which others fail.
    pub(crate) async fn transaction(
        &self,
        statements: Vec<Statement>,
        needs_rows: bool,
        progress: Progress,
    ) -> Result<TransactionOutcome, StoreError> {
        match self {
            Self::Postgres(pool) => pool.transaction(statements, needs_rows, progress).await,
            Self::Sqlite(file) => file.transaction(statements, needs_rows, progress).await,
        }
    }

    /// Runs a transaction whose statements are decided one by one: `next` gets the rows of the previous one. The first
    /// statement locks the rows that are changed later. An error rolls back.
    pub(crate) async fn transact<T, E>(
        &self,
        first: Statement,
        next: impl FnMut(Rows) -> Result<Step<T>, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        match self {
            Self::Postgres(pool) => pool.transact(first, next).await,
            Self::Sqlite(file) => file.transact(first, next).await,
        }
    }

    /// Runs the statements in one transaction.
    pub(crate) async fn execute_all(&self, statements: Vec<Statement>) -> Result<(), StoreError> {
        self.transaction(statements, false, Box::new(|_| ())).await?.into_result()
    }

    /// Copies a SQLite database into a new file.
    pub(crate) async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        match self {
            Self::Postgres(_) => {
                Err(StoreError::Unfit("a Postgres database is copied by its own tools".into()))
            }
            Self::Sqlite(file) => file.backup(to).await,
        }
    }

    /// Creates the tables of an empty SQLite file. A Postgres database is migrated by its operator.
    pub(crate) async fn create_in_empty_file(&self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(_) => Ok(()),
            Self::Sqlite(file) => file.create_if_empty().await,
        }
    }

    /// Creates the change log and the triggers that write it, or replaces those of an earlier version. `notifies`:
    /// whether the database notifies instances of changes, if it can.
    pub(crate) async fn install_log(&self, schema: &Schema, notifies: bool) -> Result<(), StoreError> {
        match self {
            Self::Postgres(pool) => pool.install_log(schema, notifies).await,
            Self::Sqlite(file) => file.install_log(schema).await,
        }
    }

    /// Creates the audit log and the triggers that write it, or replaces those of an earlier version.
    pub(crate) async fn install_audit(&self, schema: &Schema) -> Result<(), StoreError> {
        match self {
            Self::Postgres(pool) => pool.install_audit(schema).await,
            Self::Sqlite(file) => file.install_audit(schema).await,
        }
    }

    /// How often the change log is read where the database does not notify.
    pub(crate) fn poll_interval(&self) -> Duration {
        match self {
            Self::Postgres(_) => postgres::POLL,
            Self::Sqlite(_) => SQLITE_POLL,
        }
    }

    /// Wakes the feed at each notification, and sends its confirmations, until the connection ends. Returns why. Never
    /// returns for SQLite, which does not notify.
    pub(crate) async fn listen(&self, log: &str, signals: &Signals) -> StoreError {
        match self {
            Self::Postgres(pool) => pool.listen(log, signals).await,
            Self::Sqlite(_) => std::future::pending().await,
        }
    }

    /// Logs a change by this statement, and waits until the readers of the log have confirmed it.
    pub(crate) async fn log_and_wait(
        &self,
        log: &str,
        entry: Statement,
        timeout: Duration,
    ) -> Result<Confirmations, StoreError> {
        match self {
            Self::Postgres(pool) => pool.log_and_wait(log, entry, timeout).await,
            // The processes that have the file open are unknown, but each of them reads it this often.
            Self::Sqlite(file) => {
                file.query(Deadline::Operator, entry).await?;
                tokio::time::sleep(SQLITE_POLL * 2).await;
                Ok(Confirmations::default())
            }
        }
    }
}
