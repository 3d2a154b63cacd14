//! The store at the bottom: SQLite or Postgres, read by one decoder.

use std::{sync::Arc, time::Duration};

use metrics::{Counter, Gauge, Histogram};
use tokio::{sync::OnceCell, time::timeout};
use tracing::warn;

use super::{
    Found, KeyStore, StoreError,
    catalog::Catalog,
    cell::Cell,
    postgres::Postgres,
    row,
    sql::{Backend, Dialect, Patience, Statement},
    sqlite::Sqlite,
};
use crate::{
    config::{DatabaseOptions, DatabaseUrl},
    credential::Prefix,
    decision::Tier,
    metrics::Metrics,
    moment::Moment,
    record::KeyRecord,
};

/// Where the keys are. Cheap to clone.
#[derive(Clone)]
pub struct Database(Arc<Inner>);

struct Inner {
    backend: Backend,
    catalog: OnceCell<Catalog>,
    timeout: Duration,
    counts: Counts,
}

struct Counts {
    records: Histogram,
    ping: Histogram,
    errors: Counter,
    up: Gauge,
    undecodable: Counter,
}

impl Database {
    /// Takes the settings; the database itself need not be up, nor the file be there.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] when the URL's parameters cannot be used. Must be called within a
    /// tokio runtime.
    pub fn connect(options: &DatabaseOptions, metrics: &Metrics) -> Result<Self, StoreError> {
        let (timeout, connections) = (options.database_timeout, options.database_connections);
        let backend = match &options.database_url {
            DatabaseUrl::Sqlite(path) => Backend::Sqlite(Sqlite::new(path, timeout, connections)),
            DatabaseUrl::Postgres(url) => Backend::Postgres(Postgres::new(url, timeout, connections)?),
        };
        let store = backend.dialect().name();
        let counts = Counts {
            records: metrics.store_duration(store, "records"),
            ping: metrics.store_duration(store, "ping"),
            errors: metrics.store_errors(store),
            up: metrics.store_up(store),
            undecodable: metrics.undecodable_rows(),
        };
        Ok(Self(Arc::new(Inner { backend, catalog: OnceCell::new(), timeout, counts })))
    }

    /// Answers once the database answers and its tables fit.
    ///
    /// # Errors
    /// [`StoreError`] with what stands against it.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let asked = async {
            self.catalog(Patience::Check).await?;
            self.backend().query(Patience::Check, Statement::new("SELECT 'up'", [])).await
        };
        self.0.counted(&self.0.counts.ping, asked).await.map(drop)
    }

    pub(super) fn backend(&self) -> &Backend {
        &self.0.backend
    }

    /// Read at the first success, and then kept.
    pub(super) async fn catalog(&self, patience: Patience) -> Result<&Catalog, StoreError> {
        let read = || async {
            let backend = self.backend();
            if backend.dialect() == Dialect::Sqlite {
                self.create_in_empty_file().await?;
            }
            Catalog::read(backend, patience).await?.fit()
        };
        self.0.catalog.get_or_try_init(read).await
    }

    fn decode(&self, rows: &[Vec<Cell>]) -> Arc<[Arc<KeyRecord>]> {
        let records = rows.iter().filter_map(|cells| match row::decode(cells) {
            Ok(record) => {
                for column in record.allowed.unreadable() {
                    self.0.counts.undecodable.increment(1);
                    warn!(key_id = record.id.0, column, "not a list of strings: the key is denied");
                }
                Some(Arc::new(record))
            }
            Err(row::Undecodable { key, table, column, expected }) => {
                self.0.counts.undecodable.increment(1);
                let key_id = key.as_deref().unwrap_or("unreadable");
                warn!(key_id, table, column, expected, "row cannot be decoded: its key is denied");
                None
            }
        });
        records.collect()
    }
}

impl KeyStore for Database {
    async fn records(&self, prefix: Prefix, _: Moment) -> Result<Found, StoreError> {
        let read = async {
            let sql = Arc::clone(&self.catalog(Patience::Check).await?.records);
            let statement = Statement { sql, params: vec![Some(prefix.as_str().to_owned())] };
            self.backend().query(Patience::Check, statement).await
        };
        let rows = self.0.counted(&self.0.counts.records, read).await?;
        Ok(Found { records: self.decode(&rows), tier: Tier::Database, stale: false })
    }
}

impl Inner {
    /// Bounds and counts a call.
    async fn counted<T>(
        &self,
        duration: &Histogram,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let started = std::time::Instant::now();
        let result = timeout(self.timeout, call).await.unwrap_or(Err(StoreError::Timeout(self.timeout)));
        duration.record(started.elapsed());
        match &result {
            Ok(_) => self.counts.up.set(1.0),
            Err(_) => {
                self.counts.errors.increment(1);
                self.counts.up.set(0.0);
            }
        }
        result
    }
}
