//! A pool of connections to Postgres, and the statements and transactions that run on it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bb8_postgres::bb8::{Pool, PooledConnection, RunError};
use tokio::sync::watch;

use super::{
    connection::{ConnectionManager, ConnectionState, query},
    connector::PostgresConnector,
    error::{explain, is_disconnect, is_read_only, within},
    listen::NotificationListener,
    settings::Settings,
};
use crate::{
    addresses::Resolver,
    config::PostgresUrl,
    store::{
        StoreError,
        statement::{
            Access, ConnectionCounts, Deadline, Progress, Rows, Statement, Step, TransactionOutcome,
            first_value,
        },
    },
    usage::WriteOutcome,
};

/// A pool of connections. Cheap to clone.
#[derive(Clone)]
pub(crate) struct PostgresPool {
    pool: Pool<ConnectionManager>,
    /// For the connections that listen.
    feed: PostgresConnector,
    /// Raised to close all earlier connections.
    generation: Arc<AtomicU64>,
    /// Why the last attempt to connect failed.
    failures: watch::Receiver<Option<StoreError>>,
    timeout: Duration,
    limit_of_connections: u32,
}

/// Timeout of a statement that an operator waits for, unless the database timeout is longer.
const OPERATOR_TIMEOUT: Duration = Duration::from_secs(30);

/// Timeout of a write in the background, unless the database timeout is longer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// Timeout of each statement of a listener, unless the database timeout is longer.
const LISTENER_TIMEOUT: Duration = Duration::from_secs(2);

/// Begins a write in the background. It waits for a locked row less long than its timeout.
const BEGIN_WRITE: &str = "BEGIN; SET LOCAL lock_timeout = '200ms'";

impl PostgresPool {
    /// Reads the settings in the URL. Connects at the first statement. `resolver` resolves host names.
    pub(crate) fn new(
        url: &PostgresUrl,
        feed_url: Option<&PostgresUrl>,
        resolver: &Arc<dyn Resolver>,
        deadline: Duration,
        connections: u32,
        access: Access,
    ) -> Result<Self, StoreError> {
        let connector = |flag, url| {
            let settings = Settings::read(flag, url).map_err(|error| StoreError::Unfit(error.into()))?;
            Ok::<_, StoreError>(PostgresConnector::new(settings, Arc::clone(resolver), deadline))
        };
        let main = connector("--database-url", url)?;
        let feed = feed_url.map(|url| connector("--change-feed-url", url)).transpose()?;
        let feed = feed.unwrap_or_else(|| main.clone());
        let (sender, failures) = watch::channel(None);
        let generation = Arc::<AtomicU64>::default();
        let pool = Pool::builder()
            .max_size(connections)
            .connection_timeout(deadline)
            // A failed attempt is reported to its callers, and not repeated in the background.
            .retry_connection(false)
            .build_unchecked(ConnectionManager {
                connector: main,
                generation: Arc::clone(&generation),
                failures: sender,
                timeout: deadline,
                access,
            });
        Ok(Self { pool, feed, generation, failures, timeout: deadline, limit_of_connections: connections })
    }

    pub(crate) async fn query(&self, deadline: Deadline, statement: &Statement) -> Result<Rows, StoreError> {
        let limit = self.limit(deadline);
        let work = async {
            let mut connection = self.connection().await?;
            match connection.query(statement).await {
                // A connection that ended while idle is no outage: the statement runs again on a new one. An operator's
                // statement does not, since it may have changed something before the answer was lost.
                Err(error) if is_disconnect(&error) && deadline == Deadline::Check => {
                    // The server may have reported its end before the socket closes, so the connection must not return to
                    // the pool. The other connections to this server are dead as well.
                    connection.client.server.abandon_unresponsive();
                    connection.state = ConnectionState::Ending;
                    drop(connection);
                    self.connection().await?.query(statement).await
                }
                // Nothing was changed, and the next connection may lead elsewhere.
                Err(error) if is_read_only(&error) && !connection.client.server.is_fit() => {
                    drop(connection);
                    self.connection().await?.query(statement).await
                }
                result => result,
            }
            .map_err(|error| explain(&error))
        };
        within(limit, work).await
    }

    pub(crate) async fn transaction(
        &self,
        statements: Vec<Statement>,
        needs_rows: bool,
        progress: Progress,
    ) -> Result<TransactionOutcome, StoreError> {
        let limit = self.limit(Deadline::Operator);
        let mut connection = self.connection().await?;
        // Each early return leaves it busy: the connection is closed, and the server rolls back.
        connection.state = ConnectionState::Busy;
        let (mut returned, mut empty) = (Vec::with_capacity(statements.len()), Vec::new());
        within(limit, connection.begin()).await?;
        for (at, statement) in statements.iter().enumerate() {
            if statement.is_final && !empty.is_empty() {
                continue;
            }
            let rows = async { query(&connection.client, statement).await.map_err(|error| explain(&error)) };
            let rows = match within(limit, rows).await {
                Ok(rows) => rows,
                Err(error) => return Ok(TransactionOutcome::Failed(at, error)),
            };
            if (needs_rows || statement.is_required) && rows.is_empty() {
                empty.push(at);
            }
            returned.push(rows);
            progress(at + 1);
        }
        let end = if empty.is_empty() { "COMMIT" } else { "ROLLBACK" };
        connection.state = ConnectionState::Ending;
        within(limit, connection.command(end)).await?;
        connection.state = ConnectionState::Idle;
        Ok(if empty.is_empty() {
            TransactionOutcome::Committed(returned)
        } else {
            TransactionOutcome::RolledBack(empty)
        })
    }

    pub(crate) async fn transact<T, E: From<StoreError>>(
        &self,
        first: Statement,
        mut next: impl FnMut(Rows) -> Result<Step<T>, E>,
    ) -> Result<T, E> {
        let limit = self.limit(Deadline::Operator);
        let mut connection = self.connection().await?;
        // Each early return leaves it busy: the connection is closed, and the server rolls back.
        connection.state = ConnectionState::Busy;
        within(limit, connection.begin_change()).await?;
        let mut statement = first;
        let (end, result) = loop {
            let rows = async { query(&connection.client, &statement).await.map_err(|error| explain(&error)) };
            match next(within(limit, rows).await?) {
                Ok(Step::Run(other)) => statement = other,
                Ok(Step::Commit(value)) => break ("COMMIT", Ok(value)),
                Ok(Step::Abandon(value)) => break ("ROLLBACK", Ok(value)),
                Err(error) => break ("ROLLBACK", Err(error)),
            }
        };
        connection.state = ConnectionState::Ending;
        within(limit, connection.command(end)).await?;
        connection.state = ConnectionState::Idle;
        result
    }

    /// Runs one statement in a transaction whose number is known before its commit.
    pub(crate) async fn write_once(&self, statement: &Statement) -> WriteOutcome<StoreError> {
        let limit = self.timeout.max(WRITE_TIMEOUT);
        let begun = async {
            let mut connection = self.connection().await?;
            // Each early return leaves it busy: the connection is closed, and the server rolls back.
            connection.state = ConnectionState::Busy;
            connection.command(BEGIN_WRITE).await?;
            let number = Statement::new("SELECT CAST(pg_current_xact_id() AS text)", []);
            let number = query(&connection.client, &number).await.map_err(|error| explain(&error))?;
            if let Err(error) = query(&connection.client, statement).await {
                // A connection that still answers returns to the pool: many such statements may fail.
                if connection.command("ROLLBACK").await.is_ok() {
                    connection.state = ConnectionState::Idle;
                }
                return Err(explain(&error));
            }
            Ok((connection, first_value(number).unwrap_or_default()))
        };
        let (mut connection, transaction) = match within(limit, begun).await {
            Ok(begun) => begun,
            Err(error) => return WriteOutcome::Failed(error),
        };
        connection.state = ConnectionState::Ending;
        match within(limit, connection.command("COMMIT")).await {
            Ok(()) => {
                connection.state = ConnectionState::Idle;
                WriteOutcome::Done
            }
            Err(error) => WriteOutcome::Unknown { transaction, error },
        }
    }

    /// A connection that receives notifications, under this name.
    pub(super) async fn listener(&self, name: &str) -> Result<NotificationListener, StoreError> {
        NotificationListener::connect(&self.feed, name, self.timeout.max(LISTENER_TIMEOUT)).await
    }

    /// Closes all connections, those in use once they are returned.
    pub(crate) fn reconnect(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// Open connections, those that are used, and their maximum number.
    pub(crate) fn connections(&self) -> ConnectionCounts {
        let state = self.pool.state();
        let idle = state.idle_connections;
        ConnectionCounts {
            used: state.connections.saturating_sub(idle),
            idle,
            limit: self.limit_of_connections,
        }
    }

    fn limit(&self, deadline: Deadline) -> Duration {
        match deadline {
            Deadline::Check => self.timeout,
            Deadline::Operator => self.timeout.max(OPERATOR_TIMEOUT),
        }
    }

    async fn connection(&self) -> Result<PooledConnection<'_, ConnectionManager>, StoreError> {
        let mut failures = self.failures.clone();
        failures.mark_unchanged();
        tokio::select! {
            biased;
            connection = self.pool.get() => connection.map_err(|error| match error {
                RunError::TimedOut => StoreError::Timeout(self.timeout),
                RunError::User(error) => error,
            }),
            error = self.connect_error(&mut failures) => Err(error),
        }
    }

    /// Why there is no connection, once an attempt to connect has failed. While there are connections, callers wait for
    /// one of them, even if an attempt to make one more fails.
    async fn connect_error(&self, failures: &mut watch::Receiver<Option<StoreError>>) -> StoreError {
        while failures.changed().await.is_ok() {
            let failure = failures.borrow_and_update().clone();
            if let (0, Some(error)) = (self.pool.state().connections, failure) {
                return error;
            }
        }
        StoreError::Unavailable("its pool of connections is closed".into())
    }
}
