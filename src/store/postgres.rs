//! Postgres, through a pool of connections that one bad answer does not poison.

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
    StoreError, Written,
    sql::{Outcome, Patience, Progress, Rows, Statement},
};

pub(super) mod change_log;
mod connect;
mod errors;
mod link;
mod notices;
mod settings;
mod tls;
pub(super) mod triggers;

use connect::Connector;
use errors::{died, explain, is_read_only, within};
use link::{Manager, State, query};
pub(crate) use notices::Notices;
use settings::Settings;

use crate::{addresses::Lookup, config::PostgresUrl};

/// A Postgres server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Postgres {
    pool: Pool<Manager>,
    /// Where notifications are heard.
    feed: Connector,
    /// Raised to close the connections of before.
    generation: Arc<AtomicU64>,
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
    /// Takes the settings out of the URL. Connects when it is first asked something. Names are looked up by `lookup`.
    pub(crate) fn new(
        url: &PostgresUrl,
        feed_url: Option<&PostgresUrl>,
        lookup: &Arc<dyn Lookup>,
        deadline: Duration,
        connections: u32,
    ) -> Result<Self, StoreError> {
        let connector = |flag, url| {
            let settings = Settings::read(flag, url).map_err(|error| StoreError::Unfit(error.into()))?;
            Ok::<_, StoreError>(Connector::new(settings, Arc::clone(lookup), deadline))
        };
        let main = connector("--database-url", url)?;
        let feed = feed_url.map(|url| connector("--change-feed-url", url)).transpose()?;
        let feed = feed.unwrap_or_else(|| main.clone());
        let (sender, refusals) = watch::channel(None);
        let generation = Arc::<AtomicU64>::default();
        let pool = Pool::builder()
            .max_size(connections)
            .connection_timeout(deadline)
            // A failed attempt is told to those who wait, instead of being repeated behind them.
            .retry_connection(false)
            .build_unchecked(Manager {
                connector: main,
                generation: Arc::clone(&generation),
                refusals: sender,
                timeout: deadline,
            });
        Ok(Self { pool, feed, generation, refusals, timeout: deadline })
    }

    pub(crate) async fn query(&self, patience: Patience, statement: &Statement) -> Result<Rows, StoreError> {
        let limit = self.limit(patience);
        let work = async {
            let mut link = self.link().await?;
            match link.query(statement).await {
                // A connection that died while idle is no outage: once more on a fresh one. Not for a person, who
                // may have changed something: the connection is fresh then, and it may be the answer that was lost.
                Err(error) if died(&error) && patience == Patience::Check => {
                    // The server may have said so before the socket closes: not back into the pool. Where it ends,
                    // the others are dead as well.
                    link.client.server.give_up_silent();
                    link.state = State::Ending;
                    drop(link);
                    self.link().await?.query(statement).await
                }
                // Nothing was changed, and the next connection may lead elsewhere.
                Err(error) if is_read_only(&error) && !link.client.server.is_fit() => {
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
        // A person would wait no less for one connection.
        Notices::connect(&self.feed, name, self.timeout.max(Duration::from_secs(2))).await
    }

    /// Closes all connections, those in use as soon as they are returned.
    pub(crate) fn reconnect(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
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
