//! Postgres, through a pool of connections that one bad answer does not poison.

use std::{error::Error as _, future::Future, sync::Arc, time::Duration};

use bb8::{ManageConnection, Pool, PooledConnection, RunError};
use bb8_postgres::PostgresConnectionManager;
use tokio::{sync::watch, time::timeout};
use tokio_postgres::{
    Client, Config, Row,
    types::{FromSql, ToSql, Type},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    StoreError, Written,
    cell::Cell,
    sql::{Outcome, Patience, Progress, Rows, Statement},
};

mod notices;
mod tls;

pub(crate) use notices::Notices;

/// A Postgres server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Postgres {
    pool: Pool<Manager>,
    /// Where notifications are heard.
    feed: (Config, MakeRustlsConnect),
    /// Why the last attempt to connect failed.
    refusals: watch::Receiver<Option<StoreError>>,
    timeout: Duration,
}

/// How long a person waits for one statement, unless the database timeout is longer still.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a write of something that nobody waits for may take, unless the database timeout is longer still.
const WRITE: Duration = Duration::from_secs(2);

/// How long it is tried to have the server stop.
const CANCEL: Duration = Duration::from_secs(5);

struct Manager {
    inner: PostgresConnectionManager<MakeRustlsConnect>,
    tls: MakeRustlsConnect,
    refusals: watch::Sender<Option<StoreError>>,
    timeout: Duration,
}

/// A connection, and what somebody is in the middle of on it.
struct Link {
    client: Client,
    tls: MakeRustlsConnect,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    /// Whoever gives up half-way has the server stop it, and the pool throws the connection away: the answer
    /// that still comes is nobody else's.
    Busy,
    /// The same, but that the server is not to stop it: what it means is decided already.
    Ending,
}

impl Postgres {
    /// Takes the settings out of the URL. Connects when it is first asked something.
    pub(crate) fn new(
        url: &url::Url,
        feed_url: &url::Url,
        deadline: Duration,
        connections: u32,
    ) -> Result<Self, StoreError> {
        let settings = |url| tls::settings(url).map_err(|error| StoreError::Unfit(error.into()));
        let ((config, tls), feed) = (settings(url)?, settings(feed_url)?);
        let inner = PostgresConnectionManager::new(config, tls.clone());
        let (sender, refusals) = watch::channel(None);
        let pool = Pool::builder()
            .max_size(connections)
            .connection_timeout(deadline)
            // A failed attempt is told to those who wait, instead of being repeated behind them.
            .retry_connection(false)
            .build_unchecked(Manager { inner, tls, refusals: sender, timeout: deadline });
        Ok(Self { pool, feed, refusals, timeout: deadline })
    }

    pub(crate) async fn query(&self, patience: Patience, statement: &Statement) -> Result<Rows, StoreError> {
        let limit = self.limit(patience);
        let work = async {
            let mut link = self.link().await?;
            match link.query(statement).await {
                // A connection that died while idle is no outage: once more on a fresh one. Not for a person, who
                // may have changed something: the connection is fresh then, and it may be the answer that was lost.
                Err(error) if died(&error) && patience == Patience::Check => {
                    // The server may have said so before the socket closes: not back into the pool.
                    link.state = State::Ending;
                    drop(link);
                    self.link().await?.query(statement).await
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
    ) -> Result<Outcome, StoreError> {
        let limit = self.limit(Patience::Person);
        let mut link = self.link().await?;
        // Left busy by every early end: the connection is closed and the server rolls back.
        link.state = State::Busy;
        let mut empty = Vec::new();
        within(limit, link.command("BEGIN")).await?;
        for (at, statement) in statements.iter().enumerate() {
            if statement.is_final && !empty.is_empty() {
                continue;
            }
            let rows = async { query(&link.client, statement).await.map_err(|error| explain(&error)) };
            let rows = match within(limit, rows).await {
                Ok(rows) => rows,
                Err(error) => return Ok(Outcome::Failed(at, error)),
            };
            if needs_rows && rows.is_empty() {
                empty.push(at);
            }
            progress(at + 1);
        }
        let end = if empty.is_empty() { "COMMIT" } else { "ROLLBACK" };
        link.state = State::Ending;
        within(limit, link.command(end)).await?;
        link.state = State::Idle;
        Ok(if empty.is_empty() { Outcome::Committed } else { Outcome::Refused(empty) })
    }

    /// Runs one statement in a transaction whose number is known before its end.
    pub(crate) async fn write_once(&self, statement: &Statement) -> Written {
        let limit = self.timeout.max(WRITE);
        let begun = async {
            let mut link = self.link().await?;
            // Left busy by every early end: the connection is closed and the server rolls back.
            link.state = State::Busy;
            link.command("BEGIN").await?;
            let number = Statement::new("SELECT CAST(pg_current_xact_id() AS text)", []);
            let number = query(&link.client, &number).await.map_err(|error| explain(&error))?;
            query(&link.client, statement).await.map_err(|error| explain(&error))?;
            Ok((link, number.into_iter().flatten().flatten().next().unwrap_or_default()))
        };
        let (mut link, transaction) = match within(limit, begun).await {
            Ok(begun) => begun,
            Err(error) => return Written::NotDone(error),
        };
        link.state = State::Ending;
        match within(limit, link.command("COMMIT")).await {
            Ok(()) => {
                link.state = State::Idle;
                Written::Done
            }
            Err(error) => Written::Unsure(transaction, error),
        }
    }

    /// A connection that hears notifications, under this name.
    pub(crate) async fn notices(&self, name: &str) -> Result<Notices, StoreError> {
        let (config, tls) = self.feed.clone();
        // A person would wait no less for one connection.
        Notices::connect(config, tls, name, self.timeout.max(Duration::from_secs(2))).await
    }

    /// Connections that are open.
    pub(crate) fn connections(&self) -> u32 {
        self.pool.state().connections
    }

    fn limit(&self, patience: Patience) -> Duration {
        match patience {
            Patience::Check => self.timeout,
            Patience::Person => self.timeout.max(PATIENCE),
        }
    }

    async fn link(&self) -> Result<PooledConnection<'_, Manager>, StoreError> {
        let mut refusals = self.refusals.clone();
        refusals.mark_unchanged();
        tokio::select! {
            biased;
            link = self.pool.get() => link.map_err(|error| match error {
                RunError::TimedOut => StoreError::Timeout(self.timeout),
                RunError::User(error) => error,
            }),
            error = self.refusal(&mut refusals) => Err(error),
        }
    }

    /// Why there is no connection, once an attempt to make one has failed. While there are some, whoever waits gets
    /// one of them, whatever became of one more.
    async fn refusal(&self, refusals: &mut watch::Receiver<Option<StoreError>>) -> StoreError {
        while refusals.changed().await.is_ok() {
            let refusal = refusals.borrow_and_update().clone();
            if let (0, Some(error)) = (self.connections(), refusal) {
                return error;
            }
        }
        StoreError::Unavailable("its pool of connections is closed".into())
    }
}

impl ManageConnection for Manager {
    type Connection = Link;
    type Error = StoreError;

    async fn connect(&self) -> Result<Link, StoreError> {
        let connected = async { self.inner.connect().await.map_err(|error| unavailable(&error)) };
        match within(self.timeout, connected).await {
            Ok(client) => Ok(Link { client, tls: self.tls.clone(), state: State::Idle }),
            Err(error) => {
                self.refusals.send_replace(Some(error.clone()));
                Err(error)
            }
        }
    }

    /// Asks nothing of the server: a look-up is one round trip, not two.
    async fn is_valid(&self, link: &mut Link) -> Result<(), StoreError> {
        match link.client.is_closed() {
            true => Err(StoreError::Unavailable("connection closed".into())),
            false => Ok(()),
        }
    }

    fn has_broken(&self, link: &mut Link) -> bool {
        link.state != State::Idle || link.client.is_closed()
    }
}

impl Link {
    async fn query(&mut self, statement: &Statement) -> Result<Rows, tokio_postgres::Error> {
        self.state = State::Busy;
        let rows = query(&self.client, statement).await;
        self.state = State::Idle;
        rows
    }

    async fn command(&self, sql: &str) -> Result<(), StoreError> {
        self.client.batch_execute(sql).await.map_err(|error| explain(&error))
    }
}

impl Drop for Link {
    /// Without being told, the server would go on with what nobody waits for, and the next attempts would pile up
    /// behind the same lock, each on a connection of its own.
    fn drop(&mut self) {
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
async fn query(client: &Client, statement: &Statement) -> Result<Rows, tokio_postgres::Error> {
    let params: Vec<_> =
        statement.params.iter().map(|cell| (cell as &(dyn ToSql + Sync), Type::TEXT)).collect();
    let rows = client.query_typed(&statement.sql, &params).await?;
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

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(limit, work).await.unwrap_or(Err(StoreError::Timeout(limit)))
}

/// Whether the connection was gone before the question was: the server says so (class 57P, shutdown
/// and the like) in place of an answer, or nothing at all.
fn died(error: &tokio_postgres::Error) -> bool {
    error.is_closed() || error.code().is_some_and(|code| code.code().starts_with("57P"))
}

fn unavailable(error: &tokio_postgres::Error) -> StoreError {
    StoreError::Unavailable(words(error))
}

/// Classes 22, 23 and 42 are about what was asked; the rest is about the server.
fn explain(error: &tokio_postgres::Error) -> StoreError {
    let words = words(error);
    match error.code().map(|code| code.code().get(..2).unwrap_or_default()) {
        Some("22" | "23" | "42") => StoreError::Unfit(format!("the database refuses: {words}").into()),
        _ => StoreError::Unavailable(words),
    }
}

/// What went wrong, without the server's DETAIL, which repeats values: a hash may be among them.
fn words(error: &tokio_postgres::Error) -> Arc<str> {
    match (error.as_db_error(), error.source()) {
        (Some(db), _) => format!("{} (SQLSTATE {})", db.message(), db.code().code()).into(),
        (None, Some(source)) => format!("{error}: {source}").into(),
        (None, None) => error.to_string().into(),
    }
}
