//! A pooled connection. The pool keeps it unless its last caller stopped waiting in the middle of a statement.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bb8_postgres::bb8::ManageConnection;
use tokio::{sync::watch, time::timeout};
use tokio_postgres::{
    Client, Row,
    types::{FromSql, ToSql, Type},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{connector::PostgresConnector, error::explain, server::Server};
use crate::{
    clock,
    store::{
        SqlValue, StoreError,
        statement::{Access, Rows, Statement},
    },
};

/// A connection, and the state that its last caller left it in.
pub(super) struct PostgresConnection {
    pub(super) client: ServerClient,
    tls: MakeRustlsConnect,
    generation: u64,
    pub(super) state: ConnectionState,
    /// Since when a statement waits for its answer.
    waiting_since: Option<Instant>,
    limit: Duration,
    access: Access,
}

/// A client, and the server that it is connected to.
pub(super) struct ServerClient {
    client: Client,
    pub(super) server: Server,
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionState {
    Idle,
    /// A statement runs. If its caller stops waiting, the server is asked to cancel it, and the pool closes the
    /// connection: the answer that still comes must not reach another caller.
    Busy,
    /// The same, but the server is not asked to cancel: the outcome of the transaction is decided already.
    Ending,
}

impl Deref for ServerClient {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// Makes connections for the pool, and reports why it cannot.
pub(super) struct ConnectionManager {
    pub(super) connector: PostgresConnector,
    /// Connections of an earlier generation are closed.
    pub(super) generation: Arc<AtomicU64>,
    pub(super) failures: watch::Sender<Option<StoreError>>,
    pub(super) timeout: Duration,
    pub(super) access: Access,
}

/// Timeout of a request to cancel a statement.
const CANCEL: Duration = Duration::from_secs(5);

impl ManageConnection for ConnectionManager {
    type Connection = PostgresConnection;
    type Error = StoreError;

    /// May take longer than its caller waits: the pool then has the connection for the next callers.
    async fn connect(&self) -> Result<PostgresConnection, StoreError> {
        let generation = self.generation.load(Ordering::Relaxed);
        match self.connector.connect(|_| (), None).await {
            Ok((client, server)) => Ok(PostgresConnection {
                client: ServerClient { client, server },
                tls: self.connector.tls(),
                generation,
                state: ConnectionState::Idle,
                waiting_since: None,
                limit: self.timeout,
                access: self.access,
            }),
            Err(error) => {
                self.failures.send_replace(Some(error.clone()));
                Err(error)
            }
        }
    }

    /// Without a statement to the server: a look-up is one round trip, not two.
    async fn is_valid(&self, connection: &mut PostgresConnection) -> Result<(), StoreError> {
        if connection.client.is_closed() || self.is_outdated(connection) {
            return Err(StoreError::Unavailable("connection closed".into()));
        }
        Ok(())
    }

    fn has_broken(&self, connection: &mut PostgresConnection) -> bool {
        connection.state != ConnectionState::Idle
            || connection.client.is_closed()
            || self.is_outdated(connection)
    }
}

impl ConnectionManager {
    /// Whether the connection leads to a server that was abandoned.
    fn is_outdated(&self, connection: &PostgresConnection) -> bool {
        connection.generation != self.generation.load(Ordering::Relaxed) || !connection.client.server.is_fit()
    }
}

impl PostgresConnection {
    pub(super) async fn query(&mut self, statement: &Statement) -> Result<Rows, tokio_postgres::Error> {
        (self.state, self.waiting_since) = (ConnectionState::Busy, Some(clock::monotonic()));
        let rows = match self.access {
            Access::ReadWrite => query(&self.client, statement).await,
            Access::ReadOnly => query_read_only(&self.client, statement).await,
        };
        (self.state, self.waiting_since) = (ConnectionState::Idle, None);
        rows
    }

    /// Begins a transaction of several statements.
    pub(super) async fn begin(&self) -> Result<(), StoreError> {
        let begin = match self.access {
            Access::ReadWrite => "BEGIN",
            Access::ReadOnly => "BEGIN READ ONLY",
        };
        self.command(begin).await
    }

    /// Begins a transaction that locks rows and decides from them. Once it has a lock it sees the newest row, whatever the
    /// database's default isolation is. It waits for a locked row less long than its timeout, so that the error says why.
    pub(super) async fn begin_change(&self) -> Result<(), StoreError> {
        let access = match self.access {
            Access::ReadWrite => "",
            Access::ReadOnly => ", READ ONLY",
        };
        let begin = format!("BEGIN ISOLATION LEVEL READ COMMITTED{access}; SET LOCAL lock_timeout = '20s'");
        self.command(&begin).await
    }

    pub(super) async fn command(&self, sql: &str) -> Result<(), StoreError> {
        self.client.batch_execute(sql).await.map_err(|error| explain(&error))
    }
}

impl Drop for PostgresConnection {
    /// Cancels a statement that no caller waits for. Otherwise the server would continue it, and the next attempts would
    /// queue behind the same lock, each on a connection of its own.
    fn drop(&mut self) {
        // The other connections to an unresponsive server are dead as well.
        if self.waiting_since.is_some_and(|since| since.elapsed() >= self.limit / 2) {
            self.client.server.abandon_unresponsive();
        }
        if self.state != ConnectionState::Busy || self.client.is_closed() {
            return;
        }
        let (cancel, tls) = (self.client.cancel_token(), self.tls.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // If the request fails, the server is gone, and the statement with it.
            runtime.spawn(async move { timeout(CANCEL, cancel.cancel_query(tls)).await });
        }
    }
}

/// In a transaction that the server allows no write in. It takes three round trips.
async fn query_read_only(
    client: &ServerClient,
    statement: &Statement,
) -> Result<Rows, tokio_postgres::Error> {
    client.batch_execute("BEGIN READ ONLY").await?;
    let rows = query(client, statement).await;
    client.batch_execute("ROLLBACK").await?;
    rows
}

/// Without preparing the statement: one round trip, which also works behind a pooler.
pub(super) async fn query(
    client: &ServerClient,
    statement: &Statement,
) -> Result<Rows, tokio_postgres::Error> {
    let params: Vec<_> =
        statement.params.iter().map(|value| (value as &(dyn ToSql + Sync), Type::TEXT)).collect();
    let rows = client.query_typed(&statement.sql, &params).await;
    let rows = rows.inspect_err(|error| client.server.note_error(error))?;
    rows.iter().map(|row| (0..row.len()).map(|at| value(row, at)).collect()).collect()
}

fn value(row: &Row, at: usize) -> Result<SqlValue, tokio_postgres::Error> {
    row.try_get::<_, Option<LossyText>>(at).map(|value| value.map(|LossyText(text)| text))
}

/// Text in which invalid bytes become U+FFFD: a database in SQL_ASCII may return any bytes, and one bad row must not
/// fail the others.
struct LossyText(String);

impl<'a> FromSql<'a> for LossyText {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(String::from_utf8_lossy(raw).into_owned()))
    }

    fn accepts(kind: &Type) -> bool {
        <String as FromSql>::accepts(kind)
    }
}
