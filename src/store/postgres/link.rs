//! One connection, which the pool keeps for as long as nobody left it in the middle of something.

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

use super::{
    connect::{Connector, Server},
    errors::explain,
};
use crate::store::{
    StoreError,
    cell::Cell,
    sql::{Rows, Statement},
};

use crate::clock;

/// A connection, and what somebody is in the middle of on it.
pub(super) struct Link {
    pub(super) client: Session,
    tls: MakeRustlsConnect,
    generation: u64,
    pub(super) state: State,
    /// Since when an answer is owed, and how soon it must come.
    owed: Option<Instant>,
    limit: Duration,
}

/// A client, and the server that it is connected to.
pub(super) struct Session {
    client: Client,
    pub(super) server: Server,
}

/// What somebody is in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Idle,
    /// Whoever gives up half-way has the server stop it, and the pool throws the connection away: the answer
    /// that still comes is nobody else's.
    Busy,
    /// The same, but that the server is not to stop it: what it means is decided already.
    Ending,
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// Makes connections for the pool, and says why where it cannot.
pub(super) struct Manager {
    pub(super) connector: Connector,
    /// Connections of an earlier generation are closed.
    pub(super) generation: Arc<AtomicU64>,
    pub(super) refusals: watch::Sender<Option<StoreError>>,
    pub(super) timeout: Duration,
}

/// How long it is tried to have the server stop.
const CANCEL: Duration = Duration::from_secs(5);

impl ManageConnection for Manager {
    type Connection = Link;
    type Error = StoreError;

    /// May take longer than anybody waits for it: the next ones find the connection.
    async fn connect(&self) -> Result<Link, StoreError> {
        let generation = self.generation.load(Ordering::Relaxed);
        match self.connector.connect(|_| (), None).await {
            Ok((client, server)) => Ok(Link {
                client: Session { client, server },
                tls: self.connector.tls(),
                generation,
                state: State::Idle,
                owed: None,
                limit: self.timeout,
            }),
            Err(error) => {
                self.refusals.send_replace(Some(error.clone()));
                Err(error)
            }
        }
    }

    /// Asks nothing of the server: a look-up is one round trip, not two.
    async fn is_valid(&self, link: &mut Link) -> Result<(), StoreError> {
        if link.client.is_closed() || self.is_outdated(link) {
            return Err(StoreError::Unavailable("connection closed".into()));
        }
        Ok(())
    }

    fn has_broken(&self, link: &mut Link) -> bool {
        link.state != State::Idle || link.client.is_closed() || self.is_outdated(link)
    }
}

impl Manager {
    /// Whether the connection leads to a server that was left.
    fn is_outdated(&self, link: &Link) -> bool {
        link.generation != self.generation.load(Ordering::Relaxed) || !link.client.server.is_fit()
    }
}

impl Link {
    pub(super) async fn query(&mut self, statement: &Statement) -> Result<Rows, tokio_postgres::Error> {
        (self.state, self.owed) = (State::Busy, Some(clock::monotonic()));
        let rows = query(&self.client, statement).await;
        (self.state, self.owed) = (State::Idle, None);
        rows
    }

    pub(super) async fn command(&self, sql: &str) -> Result<(), StoreError> {
        self.client.batch_execute(sql).await.map_err(|error| explain(&error))
    }
}

impl Drop for Link {
    /// Without being told, the server would go on with what nobody waits for, and the next attempts would pile up
    /// behind the same lock, each on a connection of its own.
    fn drop(&mut self) {
        // Nor would the other connections to a server that is gone be known to be dead.
        if self.owed.is_some_and(|since| since.elapsed() >= self.limit / 2) {
            self.client.server.give_up_silent();
        }
        if self.state != State::Busy || self.client.is_closed() {
            return;
        }
        let (cancel, tls) = (self.client.cancel_token(), self.tls.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // If nobody hears it, the server is gone, and the question with it.
            runtime.spawn(async move { timeout(CANCEL, cancel.cancel_query(tls)).await });
        }
    }
}

/// Without preparing: one round trip, and no trouble behind a pooler.
pub(super) async fn query(client: &Session, statement: &Statement) -> Result<Rows, tokio_postgres::Error> {
    let params: Vec<_> =
        statement.params.iter().map(|cell| (cell as &(dyn ToSql + Sync), Type::TEXT)).collect();
    let rows = client.query_typed(&statement.sql, &params).await;
    let rows = rows.inspect_err(|error| client.server.learn(error))?;
    rows.iter().map(|row| (0..row.len()).map(|at| cell(row, at)).collect()).collect()
}

fn cell(row: &Row, at: usize) -> Result<Cell, tokio_postgres::Error> {
    row.try_get::<_, Option<Lossy>>(at).map(|value| value.map(|Lossy(text)| text))
}

/// Text of which bytes that are none become U+FFFD: a database in SQL_ASCII hands over anything,
/// and one bad row must not take the others with it.
struct Lossy(String);

impl<'a> FromSql<'a> for Lossy {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(String::from_utf8_lossy(raw).into_owned()))
    }

    fn accepts(kind: &Type) -> bool {
        <String as FromSql>::accepts(kind)
    }
}
