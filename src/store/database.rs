//! The lowest tier: a SQLite or Postgres database.

use std::{path::Path, sync::Arc, time::Instant};

use metrics::Counter;
use parking_lot::Mutex;
use tokio::sync::SemaphorePermit;
use tracing::warn;

use super::{
    KeyStore, Lookup, Row, StoreError,
    actor::Actor,
    backend::Backend,
    decode::{self, DecodeError},
    look_up,
    management::IdempotencyClaim,
    schema::Schema,
    statement::{Access, Deadline, Rows, Statement},
    statements::Statements,
};
use crate::{
    addresses::{Resolver, SystemResolver},
    clock::{self, Timestamps},
    config::{AccountLock, DatabaseOptions},
    credential::Prefix,
    decision::Tier,
    dependencies::{Dependency, Reporter},
    metrics::{DatabaseConnections, Metrics},
    record::{BcryptHash, KeyRecord, UnreadableBudget},
    resilience::{CallError, Singleflight},
    usage::WriteOutcome,
};

pub(super) mod calls;
mod unmatchable_entries;

use calls::{Calls, Operation};
use unmatchable_entries::UnmatchableEntries;

/// The database of the keys. Cheap to clone.
#[derive(Clone)]
pub struct Database(Arc<Inner>, AccountLock, Arc<Actor>, Option<Arc<IdempotencyClaim>>);

struct Inner {
    backend: Backend,
    tables: Mutex<Option<Tables>>,
    calls: Calls,
    probes: Singleflight<(), Result<(), StoreError>>,
    undecodable: Counter,
    unmatchable: UnmatchableEntries,
    reporter: Reporter,
    connections: DatabaseConnections,
}

/// The tables as they were last read, and the look-up for them.
#[derive(Clone)]
struct Tables {
    schema: Arc<Schema>,
    look_up: Arc<str>,
}

impl Database {
    /// Does not connect. The database need not be up, nor the file exist.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] when the URL's parameters cannot be used. Must be called within a
    /// tokio runtime.
    pub fn connect(options: &DatabaseOptions, metrics: &Metrics) -> Result<Self, StoreError> {
        Self::connect_by(options, metrics, &(Arc::new(SystemResolver) as Arc<dyn Resolver>))
    }

    /// The same, with names resolved by `resolver`.
    ///
    /// # Errors
    /// As above.
    pub fn connect_by(
        options: &DatabaseOptions,
        metrics: &Metrics,
        resolver: &Arc<dyn Resolver>,
    ) -> Result<Self, StoreError> {
        Self::new(options, metrics, Backend::new(options, resolver, Access::ReadWrite)?)
    }

    /// The same, for reading only: nothing is written, and no file is created.
    ///
    /// # Errors
    /// As above.
    pub fn connect_read_only(options: &DatabaseOptions, metrics: &Metrics) -> Result<Self, StoreError> {
        let resolver = Arc::new(SystemResolver) as Arc<dyn Resolver>;
        Self::new(options, metrics, Backend::new(options, &resolver, Access::ReadOnly)?)
    }

    fn new(options: &DatabaseOptions, metrics: &Metrics, backend: Backend) -> Result<Self, StoreError> {
        let (timeout, connections) = (options.database_timeout, options.database_connections);
        let calls = Calls::new(backend.name(), timeout, connections, metrics);
        let inner = Inner {
            backend,
            tables: Mutex::default(),
            calls,
            probes: Singleflight::default(),
            undecodable: metrics.undecodable_rows(),
            unmatchable: UnmatchableEntries::new(metrics),
            reporter: metrics.reporter(Dependency::Database),
            connections: metrics.database_connections(),
        };
        Ok(Self(Arc::new(inner), AccountLock::default(), Arc::default(), None))
    }

    /// The same database, whose records follow this setting.
    #[must_use]
    pub fn with_account_lock(self, locks: AccountLock) -> Self {
        Self(self.0, locks, self.2, self.3)
    }

    /// The same database, which is changed by this actor.
    #[must_use]
    pub fn acting_as(&self, actor: Actor) -> Self {
        Self(Arc::clone(&self.0), self.1, Arc::new(actor), self.3.clone())
    }

    /// The same database, whose next change is the one of this request.
    pub(super) fn with_claim(&self, claim: Option<Arc<IdempotencyClaim>>) -> Self {
        Self(Arc::clone(&self.0), self.1, Arc::clone(&self.2), claim)
    }

    /// The request whose change comes next.
    pub(super) fn claim(&self) -> Option<Arc<IdempotencyClaim>> {
        self.3.clone()
    }

    /// Who changes it.
    pub(super) fn actor(&self) -> &Actor {
        &self.2
    }

    /// Whether locked accounts stop their keys.
    pub(super) fn account_lock(&self) -> AccountLock {
        self.1
    }

    /// Returns once the database answers a look-up of a prefix that no key has.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer, or its tables do not fit.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.0.calls.run(Operation::Ping, self.look_up(String::new())).await.map(drop)
    }

    /// The same without budgets, to find out whether they are the reason why [`Database::ping`] fails.
    ///
    /// # Errors
    /// [`StoreError`] when something else fails as well.
    pub async fn ping_without_budgets(&self) -> Result<(), StoreError> {
        let schema = self.schema(Deadline::Check).await?.without_budgets();
        let statement = Statement::new(look_up::records(&schema, self.statements()), [Some(String::new())]);
        self.backend().query(Deadline::Check, statement).await.map(drop)
    }

    /// Makes a look-up if the change log can be read again after an outage, so that look-ups are answered before
    /// everything that is cached is dropped.
    pub(super) async fn resume_look_ups(&self) {
        if self.0.calls.take_recovery() {
            // If it fails, others are tried after the breaker's pause.
            let _ = self.0.calls.run(Operation::Records, self.look_up(String::new())).await;
        }
    }

    /// Exports how many connections there are and how many calls wait for one.
    pub fn export_connections(&self) {
        let DatabaseConnections { used, idle, limit, waiting } = &self.0.connections;
        let connections = self.backend().connections();
        used.set(f64::from(connections.used));
        idle.set(f64::from(connections.idle));
        limit.set(f64::from(connections.limit));
        waiting.set(self.0.calls.waiting() as f64);
    }

    /// The highest cost among the hashes of active keys; `None` when there is none.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer, or its tables do not fit.
    pub async fn highest_cost(&self) -> Result<Option<u32>, StoreError> {
        let schema = self.schema(Deadline::Check).await?;
        let statement = Statement::plain(look_up::costs(&schema));
        // The statement reads every row, so it takes the place of one look-up.
        let _permit = self.permit().await;
        let rows = self.backend().query(Deadline::Operator, statement).await?;
        let costs = rows.iter().filter_map(|cells| cells.first()?.as_deref()?.parse().ok());
        Ok(costs.filter(|cost| BcryptHash::COSTS.contains(cost)).max())
    }

    /// Free capacity for further calls, and open connections.
    pub fn room(&self) -> (usize, u32) {
        let connections = self.backend().connections();
        (self.0.calls.free_capacity(), connections.used + connections.idle)
    }

    /// Copies a SQLite database into a new file that only its owner can read.
    ///
    /// # Errors
    /// [`StoreError`] when it is no SQLite database, or the file exists or cannot be written.
    pub async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        self.backend().backup(to).await
    }

    /// Reads the tables again before their next use: they were migrated.
    pub fn forget_tables(&self) {
        *self.0.tables.lock() = None;
    }

    /// Its name in metrics.
    pub fn name(&self) -> &'static str {
        self.backend().name()
    }

    /// Whether it is a file, and no server.
    pub fn is_file(&self) -> bool {
        self.backend().is_file()
    }

    pub(super) fn backend(&self) -> &Backend {
        &self.0.backend
    }

    pub(super) fn statements(&self) -> &'static dyn Statements {
        self.0.backend.statements()
    }

    /// The tables of this database.
    pub(super) async fn schema(&self, deadline: Deadline) -> Result<Arc<Schema>, StoreError> {
        Ok(self.tables(deadline).await?.schema)
    }

    /// Read until they are read once, then kept.
    async fn tables(&self, deadline: Deadline) -> Result<Tables, StoreError> {
        let kept = self.0.tables.lock().clone();
        if let Some(tables) = kept {
            return Ok(tables);
        }
        self.backend().create_in_empty_file().await?;
        let schema = self.backend().read_schema(deadline).await?.fit();
        // New sessions may find the tables elsewhere: the search path of a role may have changed.
        let schema = schema.inspect_err(|_| self.backend().reconnect())?;
        let look_up = look_up::records(&schema, self.statements()).into();
        let tables = Tables { schema: Arc::new(schema), look_up };
        *self.0.tables.lock() = Some(tables.clone());
        Ok(tables)
    }

    /// Runs a statement of a background task, under the guard of its operation.
    pub(super) async fn guarded_query(
        &self,
        operation: Operation,
        statement: Statement,
    ) -> Result<Rows, StoreError> {
        self.0.calls.run(operation, self.backend().query(Deadline::Check, statement)).await
    }

    /// The rows with this prefix, and the tables that they were read from.
    async fn look_up(&self, prefix: String) -> Result<(Rows, Arc<Schema>), StoreError> {
        let read = || async {
            let Tables { schema, look_up } = self.tables(Deadline::Check).await?;
            let statement = Statement::new(look_up, [Some(prefix.clone())]);
            Ok((self.backend().query(Deadline::Check, statement).await?, schema))
        };
        match read().await {
            // A column may have been dropped since the tables were read.
            Err(StoreError::Unfit(_)) => {
                self.forget_tables();
                read().await
            }
            read => read,
        }
    }

    /// The error for the caller of a failed look-up that began at `since`. It is an outage only if a probe fails as well:
    /// callers can make the database slow, and may find ways to make their own look-ups fail.
    async fn judge(&self, error: StoreError, since: Instant) -> StoreError {
        if matches!(error, StoreError::Busy) || self.is_lost() {
            return error;
        }
        if self.0.calls.was_answered_after(since) {
            return StoreError::Busy;
        }
        let database = self.clone();
        match self.0.probes.join((), || async move { database.ping().await }).await {
            Ok(Err(_)) => error,
            Ok(Ok(())) | Err(_) => StoreError::Busy,
        }
    }

    /// A place among the look-ups, for a statement that must not take a connection from them.
    pub(super) async fn permit(&self) -> SemaphorePermit<'_> {
        self.0.calls.permit().await
    }

    /// Makes a change that must not be made twice. It has no deadline of the guard, which would leave its outcome
    /// unknown.
    pub(super) async fn write_once(&self, statement: Statement) -> WriteOutcome<StoreError> {
        let _permit = self.permit().await;
        let started = clock::monotonic();
        let written = self.backend().write_once(statement).await;
        self.0.calls.record_write(started);
        written
    }

    /// The records of this prefix that can be decoded, and the rows that they are in.
    fn decode(&self, prefix: Prefix, rows: Rows) -> (Vec<Arc<KeyRecord>>, Vec<Row>) {
        let decoded = rows.into_iter().filter_map(|row| match decode::decode(&row, self.1) {
            // The change log has another prefix for this row, so its changes would be missed.
            Ok(record) if record.prefix != prefix => None,
            Ok(record) => {
                for column in record.allowed.unreadable() {
                    self.0.undecodable.increment(1);
                    let problem = decode::list_problem(&row, column);
                    warn!(key_id = record.id.0, column, problem, "list cannot be read: the key is denied");
                }
                for UnreadableBudget { id, column, expected } in &record.period_budgets.unreadable {
                    self.0.undecodable.increment(1);
                    let (key_id, budget_id) = (record.id.0, id.map(|id| id.0));
                    warn!(key_id, budget_id, column, expected, "budget cannot be decoded: the key is denied");
                }
                self.0.unmatchable.report(&record);
                Some((Arc::new(record), row))
            }
            Err(DecodeError { key, table, column, expected }) => {
                self.0.undecodable.increment(1);
                let key_id = key.as_deref().unwrap_or("unreadable");
                warn!(key_id, table, column, expected, "row cannot be decoded: its key is denied");
                None
            }
        });
        decoded.unzip()
    }
}

impl KeyStore for Database {
    async fn records(&self, prefix: Prefix, _: Timestamps) -> Result<Arc<Lookup>, StoreError> {
        let since = clock::monotonic();
        let look_up = self.look_up(prefix.as_str().to_owned());
        let (rows, schema) = match self.0.calls.run(Operation::Records, look_up).await {
            Ok(read) => read,
            Err(error) => {
                let judged = self.judge(error.clone(), since).await;
                // While the probe fails, it reports why.
                if !self.0.calls.ping_failed() {
                    self.0.reporter.fails_for(1, error.cause(), error.problem());
                }
                return Err(judged);
            }
        };
        let seen = look_up::log_position(&rows, &schema);
        let age = look_up::replication_lag(&rows);
        let (records, rows) = self.decode(prefix, rows);
        let lookup = Lookup::fresh(records, Tier::Database);
        Ok(Arc::new(Lookup { age, seen, rows: rows.into(), ..lookup }))
    }

    fn is_lost(&self) -> bool {
        self.0.calls.is_lost()
    }
}
