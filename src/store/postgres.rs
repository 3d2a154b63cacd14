//! Postgres, through a pool of connections that one bad answer does not poison.

use std::time::Duration;

use bb8::{Pool, PooledConnection, RunError};
use bb8_postgres::PostgresConnectionManager;
use tokio::sync::watch;
use tokio_postgres::Config;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    StoreError, Written,
    sql::{Outcome, Patience, Progress, Rows, Statement},
};

mod errors;
mod link;
mod notices;
mod tls;

use errors::{died, explain, within};
use link::{Manager, State, query};
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

/// Begins such a write. One row that somebody else has locked is not waited for until the deadline.
const BEGIN_WRITE: &str = "BEGIN; SET LOCAL lock_timeout = '200ms'";

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
            link.command(BEGIN_WRITE).await?;
            let number = Statement::new("SELECT CAST(pg_current_xact_id() AS text)", []);
            let number = query(&link.client, &number).await.map_err(|error| explain(&error))?;
            if let Err(error) = query(&link.client, statement).await {
                // A connection that still answers goes back into the pool: this may be one of many that fail.
                if link.command("ROLLBACK").await.is_ok() {
                    link.state = State::Idle;
                }
                return Err(explain(&error));
            }
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
