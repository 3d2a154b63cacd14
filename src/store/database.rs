//! The store at the bottom: SQLite or Postgres, read by one decoder.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use metrics::{Counter, Histogram};
use tokio::sync::SemaphorePermit;
use tracing::warn;

use super::{
    Found, KeyStore, Row, StoreError, Written,
    catalog::Catalog,
    change_log,
    postgres::Postgres,
    row,
    sql::{Backend, Dialect, Patience, Rows, Statement},
    sqlite::Sqlite,
};
use crate::{
    addresses::{Lookup, SystemLookup},
    clock::{self, Timestamps},
    config::{DatabaseOptions, DatabaseUrl},
    credential::Prefix,
    decision::Tier,
    metrics::Metrics,
    record::{KeyHash, KeyRecord, UnreadableBudget},
    resilience::Singleflight,
    resilience::{CAPACITY, DependencyGuard},
};

/// Where the keys are. Cheap to clone.
#[derive(Clone)]
pub struct Database(Arc<Inner>);

struct Inner {
    backend: Backend,
    catalog: Mutex<Option<Arc<Catalog>>>,
    /// For checks, and what comes of them.
    guard: DependencyGuard,
    /// For what has to go on while checks are too many: to hear of changes, and whether the database is there.
    own: DependencyGuard,
    own_reads: Mutex<OwnReads>,
    probes: Singleflight<(), Result<(), StoreError>>,
    durations: Durations,
    undecodable: Counter,
}

/// How Keystile's own reads went, which no caller makes, and which callers' look-ups leave a connection to.
#[derive(Default)]
struct OwnReads {
    /// Whether the last look-up of Keystile's own failed.
    ping_failed: bool,
    /// Whether the log of changes could not be read last.
    changes_failed: bool,
    /// When a look-up of Keystile's own was last answered.
    answered_at: Option<Instant>,
}

/// `keystile_store_duration_seconds`, by operation.
struct Durations {
    records: Histogram,
    changes: Histogram,
    usage: Histogram,
    ping: Histogram,
}

impl Database {
    /// Takes the settings; the database itself need not be up, nor the file be there.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] when the URL's parameters cannot be used. Must be called within a
    /// tokio runtime.
    pub fn connect(options: &DatabaseOptions, metrics: &Metrics) -> Result<Self, StoreError> {
        Self::connect_by(options, metrics, &(Arc::new(SystemLookup) as Arc<dyn Lookup>))
    }

    /// The same, with names looked up by `lookup`.
    ///
    /// # Errors
    /// As above.
    pub fn connect_by(
        options: &DatabaseOptions,
        metrics: &Metrics,
        lookup: &Arc<dyn Lookup>,
    ) -> Result<Self, StoreError> {
        let (timeout, connections) = (options.database_timeout, options.database_connections);
        let backend = match &options.database_url {
            DatabaseUrl::Sqlite(path) => Backend::Sqlite(Sqlite::new(path, timeout, connections)),
            DatabaseUrl::Postgres(url) => {
                let feed_url = match &options.change_feed_url {
                    Some(DatabaseUrl::Postgres(feed_url)) => Some(feed_url),
                    Some(DatabaseUrl::Sqlite(_)) => {
                        return Err(StoreError::Unfit("--change-feed-url is no Postgres URL".into()));
                    }
                    None => None,
                };
                Backend::Postgres(Postgres::new(url, feed_url, lookup, timeout, connections)?)
            }
        };
        let store = backend.dialect().name();
        let duration = |operation| metrics.store_duration(store, operation);
        // One connection is left over, where there is more than one.
        let concurrency = (connections as usize - 1).max(1);
        Ok(Self(Arc::new(Inner {
            backend,
            catalog: Mutex::default(),
            guard: DependencyGuard::new(store, timeout, concurrency, metrics),
            own: DependencyGuard::new(store, timeout, CAPACITY, metrics),
            own_reads: Mutex::default(),
            probes: Singleflight::default(),
            durations: Durations {
                records: duration("records"),
                changes: duration("changes"),
                usage: duration("usage"),
                ping: duration("ping"),
            },
            undecodable: metrics.undecodable_rows(),
        })))
    }

    /// Answers once the database answers look-ups and its tables fit: it makes one, of a prefix that no key has.
    ///
    /// # Errors
    /// [`StoreError`] with what stands against it.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let result = self.0.own.call(&self.0.durations.ping, self.look_up(String::new())).await.map(drop);
        let mut own_reads = self.0.own_reads.lock();
        own_reads.ping_failed = result.is_err();
        if result.is_ok() {
            own_reads.answered_at = Some(clock::monotonic());
        }
        result
    }

    /// The highest cost among the hashes of active keys; `None` when there is none.
    ///
    /// # Errors
    /// [`StoreError`] with what stands against it.
    pub async fn highest_cost(&self) -> Result<Option<u32>, StoreError> {
        let catalog = self.catalog(Patience::Check).await?;
        let statement = Statement::new(catalog.select_costs(), []);
        // It reads every row: one look-up fewer meanwhile.
        let _permit = self.permit().await;
        let rows = self.backend().query(Patience::Person, statement).await?;
        let costs = rows.iter().filter_map(|cells| cells.first()?.as_deref()?.parse().ok());
        Ok(costs.filter(|cost| KeyHash::COSTS.contains(cost)).max())
    }

    /// Calls that may still be made at the same time, and connections that are open.
    pub fn room(&self) -> (usize, u32) {
        let connections = match self.backend() {
            Backend::Postgres(postgres) => postgres.connections(),
            Backend::Sqlite(sqlite) => sqlite.connections(),
        };
        (self.0.guard.free_capacity(), connections)
    }

    /// Looks at the tables anew, the next time that it matters: they were migrated.
    pub fn forget_tables(&self) {
        *self.0.catalog.lock() = None;
    }

    /// Its name in metrics.
    pub fn name(&self) -> &'static str {
        self.dialect().name()
    }

    /// Whether it is a file, and no server.
    pub fn is_file(&self) -> bool {
        self.dialect() == Dialect::Sqlite
    }

    pub(super) fn backend(&self) -> &Backend {
        &self.0.backend
    }

    pub(super) fn dialect(&self) -> Dialect {
        self.0.backend.dialect()
    }

    /// Read at the first success, and then kept.
    pub(super) async fn catalog(&self, patience: Patience) -> Result<Arc<Catalog>, StoreError> {
        let kept = self.0.catalog.lock().clone();
        if let Some(catalog) = kept {
            return Ok(catalog);
        }
        if self.dialect() == Dialect::Sqlite {
            self.create_in_empty_file().await?;
        }
        let catalog = Catalog::read(self.backend(), patience).await?.fit();
        // Where they are found may have changed for new sessions alone: the search path of a role.
        let catalog = Arc::new(catalog.inspect_err(|_| self.backend().reconnect())?);
        *self.0.catalog.lock() = Some(Arc::clone(&catalog));
        Ok(catalog)
    }

    /// Makes a call that nobody waits for: guarded, and counted under `operation`.
    pub(super) async fn check(&self, operation: Operation, statement: Statement) -> Result<Rows, StoreError> {
        let Inner { guard, own, durations, .. } = &*self.0;
        let (guard, duration) = match operation {
            Operation::Changes => (own, &durations.changes),
            Operation::Usage => (guard, &durations.usage),
        };
        let result = guard.call(duration, self.backend().query(Patience::Check, statement)).await;
        if matches!(operation, Operation::Changes) {
            self.0.own_reads.lock().changes_failed = result.is_err();
        }
        result
    }

    /// The rows with this prefix, and the tables that they were read from.
    async fn look_up(&self, prefix: String) -> Result<(Rows, Arc<Catalog>), StoreError> {
        let read = || async {
            let catalog = self.catalog(Patience::Check).await?;
            let statement = Statement::new(Arc::clone(&catalog.records), [Some(prefix.clone())]);
            Ok((self.backend().query(Patience::Check, statement).await?, catalog))
        };
        match read().await {
            // A column may have gone since the tables were looked at.
            Err(StoreError::Unfit(_)) => {
                self.forget_tables();
                read().await
            }
            read => read,
        }
    }

    /// What the failure of a look-up that began `since` is to its caller. It is an outage only if a look-up of
    /// Keystile's own fails as well: callers can make the database slow, and some may have found a way to make their own
    /// look-ups fail.
    async fn judge(&self, error: StoreError, since: Instant) -> StoreError {
        if matches!(error, StoreError::Busy) || self.is_lost() {
            return error;
        }
        if self.0.own_reads.lock().answered_at.is_some_and(|at| at > since) {
            return StoreError::Busy;
        }
        let database = self.clone();
        match self.0.probes.join((), || async move { database.ping().await }).await {
            Ok(Err(_)) => error,
            Ok(Ok(())) | Err(_) => StoreError::Busy,
        }
    }

    /// A turn among look-ups, for what is to take no connection beside them.
    pub(super) async fn permit(&self) -> SemaphorePermit<'_> {
        self.0.guard.permit().await
    }

    /// Makes a change that is not to be made twice. Not cut short by the guard, whose deadline would leave it
    /// unknown what became of it.
    pub(super) async fn write_once(&self, statement: Statement) -> Written {
        let _permit = self.permit().await;
        let started = clock::monotonic();
        let written = self.backend().write_once(statement).await;
        self.0.durations.usage.record(started.elapsed());
        written
    }

    /// The records of this prefix that can be decoded, and the rows that they are in.
    fn decode(&self, prefix: Prefix, rows: Rows) -> (Vec<Arc<KeyRecord>>, Vec<Row>) {
        let decoded = rows.into_iter().filter_map(|cells| match row::decode(&cells) {
            // The log names its changes by another prefix, so they would be missed here.
            Ok(record) if record.prefix != prefix => None,
            Ok(record) => {
                for column in record.allowed.unreadable() {
                    self.0.undecodable.increment(1);
                    let problem = row::list_problem(&cells, column);
                    warn!(key_id = record.id.0, column, problem, "list cannot be read: the key is denied");
                }
                for UnreadableBudget { id, column, expected } in &record.period_budgets.unreadable {
                    self.0.undecodable.increment(1);
                    let (key_id, budget_id) = (record.id.0, id.map(|id| id.0));
                    warn!(key_id, budget_id, column, expected, "budget cannot be decoded: the key is denied");
                }
                Some((Arc::new(record), cells))
            }
            Err(row::Undecodable { key, table, column, expected }) => {
                self.0.undecodable.increment(1);
                let key_id = key.as_deref().unwrap_or("unreadable");
                warn!(key_id, table, column, expected, "row cannot be decoded: its key is denied");
                None
            }
        });
        decoded.unzip()
    }
}

/// What a guarded call is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operation {
    Changes,
    Usage,
}

impl KeyStore for Database {
    async fn records(&self, prefix: Prefix, _: Timestamps) -> Result<Arc<Found>, StoreError> {
        let since = clock::monotonic();
        let look_up = self.look_up(prefix.as_str().to_owned());
        let (rows, catalog) = match self.0.guard.call(&self.0.durations.records, look_up).await {
            Ok(read) => read,
            Err(error) => return Err(self.judge(error, since).await),
        };
        let seen = rows.first().and_then(|cells| cells.get(row::COLUMNS.len())?.as_deref());
        let seen = seen.and_then(|text| change_log::position(text, &catalog)).map(Arc::new);
        let lag = rows.first().and_then(|cells| cells.get(row::COLUMNS.len() + 1)?.as_deref()?.parse().ok());
        let age = lag.map_or(Duration::ZERO, |lag| {
            Duration::try_from_secs_f64(lag).unwrap_or(if lag < 0.0 { Duration::ZERO } else { Duration::MAX })
        });
        let (records, rows) = self.decode(prefix, rows);
        let found = Found::fresh(records, Tier::Database);
        Ok(Arc::new(Found { age, seen, rows: rows.into(), ..found }))
    }

    fn is_lost(&self) -> bool {
        let own_reads = self.0.own_reads.lock();
        own_reads.ping_failed || own_reads.changes_failed
    }
}
