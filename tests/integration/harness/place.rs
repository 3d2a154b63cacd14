//! A database of one test's own, in each form that Keystile works with.

use std::path::PathBuf;

use keystile::{
    clock::Timestamps,
    config::{DatabaseOptions, DatabaseUrl},
    credential::Prefix,
    metrics::Metrics,
    record::KeyRecord,
    store::{Database, KeyStore, StoreError},
};
use tempfile::TempDir;

use super::postgres::Schema;

/// bcrypt at cost 4 of [`CREDENTIAL`].
pub const HASH: &str = "$2b$04$6q9BoBmFnzUHBXzeU2EI8e8EzfrzE6oitM6WpEA.O897CcJpI2bkG";
/// What the keys of [`Place::key`] are.
pub const CREDENTIAL: &str = "ks_sampleCredentialOfUnitTests";

/// A database.
pub struct Place {
    kind: Kind,
    /// Metrics of [`Place::database`].
    pub metrics: Metrics,
}

enum Kind {
    Sqlite(TempDir),
    Postgres(Schema),
}

/// Tables as an older version of the service that Keystile succeeds made them: no newer columns,
/// roles in a table, columns that are not ours.
const OLDER: &str = "
    CREATE TABLE roles (id integer PRIMARY KEY, name varchar(50));
    INSERT INTO roles VALUES (1, 'admin'), (2, 'engineer');
    CREATE TABLE users (
        id {serial}, email varchar(255) UNIQUE, username varchar(100) UNIQUE,
        hashed_password varchar(255) NOT NULL, role_id integer REFERENCES roles (id),
        is_active boolean, is_superuser boolean, preferences {json},
        created_at timestamp, updated_at timestamp, last_login timestamp);
    CREATE TABLE api_keys (
        id {serial}, name varchar(100), key_hash varchar(255) NOT NULL, key_prefix char(8) NOT NULL,
        user_id integer, is_active boolean, permissions {json}, scopes {json},
        rate_limit_per_minute integer, rate_limit_per_hour integer, rate_limit_per_day integer,
        allowed_models {json}, allowed_endpoints {json}, allowed_ips {json}, allowed_chatbots {json},
        is_unlimited boolean, budget_limit_cents integer, budget_type varchar(20), description text,
        tags {json}, created_at timestamp, updated_at timestamp, last_used_at timestamp,
        expires_at timestamp, total_requests integer, total_tokens integer, total_cost {number});
    CREATE INDEX ix_api_keys_key_prefix ON api_keys (key_prefix);";

/// Budgets, as the service that Keystile succeeds has them. Both databases understand it.
pub const BUDGETS: &str = "
    CREATE TABLE budgets (
        id integer PRIMARY KEY, name varchar(100), user_id integer NOT NULL, api_key_id integer,
        limit_cents integer NOT NULL, warning_threshold_cents integer, period_type varchar(20),
        period_start timestamp NOT NULL, period_end timestamp NOT NULL,
        current_usage_cents integer DEFAULT 0, is_active boolean DEFAULT true, is_exceeded boolean,
        is_warning_sent boolean, enforce_hard_limit boolean DEFAULT true, enforce_warning boolean,
        allowed_models json DEFAULT '[]', allowed_endpoints json DEFAULT '[]', description text, tags json,
        currency varchar(3), auto_renew boolean DEFAULT true, rollover_unused boolean,
        notification_settings json, created_at timestamp, updated_at timestamp, last_reset_at timestamp);";

impl Place {
    /// A file that is not there yet.
    pub fn no_file() -> Self {
        let folder = TempDir::new().expect("a folder");
        Self::new(Kind::Sqlite(folder))
    }

    /// A schema without tables.
    pub async fn empty_schema() -> Self {
        Self::new(Kind::Postgres(Schema::create().await))
    }

    pub async fn sqlite() -> Self {
        Self::no_file().migrated().await
    }

    pub async fn sqlite_older() -> Self {
        let place = Self::no_file();
        place.execute(&older("integer PRIMARY KEY", "JSON", "REAL")).await;
        place
    }

    pub async fn postgres() -> Self {
        Self::empty_schema().await.migrated().await
    }

    pub async fn postgres_older() -> Self {
        let place = Self::empty_schema().await;
        place.execute(&older("serial PRIMARY KEY", "jsonb", "numeric(12, 4)")).await;
        place
    }

    fn new(kind: Kind) -> Self {
        Self { kind, metrics: Metrics::new().expect("builds") }
    }

    async fn migrated(self) -> Self {
        self.database().migrate(None).await.expect("migrates");
        self
    }

    pub fn url(&self) -> String {
        match &self.kind {
            Kind::Sqlite(folder) => format!("sqlite:{}", file_in(folder).display()),
            Kind::Postgres(schema) => schema.url(),
        }
    }

    /// The file, where there is one.
    pub fn file(&self) -> Option<PathBuf> {
        match &self.kind {
            Kind::Sqlite(folder) => Some(file_in(folder)),
            Kind::Postgres(_) => None,
        }
    }

    /// A store on it.
    pub fn database(&self) -> Database {
        Database::connect(&options(&self.url(), 5_000), &self.metrics).expect("good settings")
    }

    /// What a fresh store finds for the prefix of [`CREDENTIAL`].
    pub async fn records(&self) -> Result<Vec<KeyRecord>, StoreError> {
        let found = self.database().records(prefix(), Timestamps::now()).await?;
        Ok(found.records.iter().map(|record| (**record).clone()).collect())
    }

    /// Runs a script past Keystile.
    pub async fn execute(&self, sql: &str) {
        match &self.kind {
            Kind::Sqlite(folder) => {
                sqlite(folder).execute_batch(sql).unwrap_or_else(|e| panic!("{e} in {sql}"))
            }
            Kind::Postgres(schema) => schema.execute(sql).await,
        }
    }

    /// The first value that a query finds, as text.
    pub async fn value(&self, sql: &str) -> Option<String> {
        match &self.kind {
            Kind::Sqlite(folder) => sqlite(folder).query_row(sql, [], |row| row.get(0)).expect("a row"),
            Kind::Postgres(schema) => schema.value(sql).await,
        }
    }

    /// Puts in a row. Values are texts, or NULL.
    pub async fn insert(&self, table: &str, values: &[(&str, Option<&str>)]) {
        let names: Vec<_> = values.iter().map(|(name, _)| *name).collect();
        let literal = |value: &Option<&str>| match value {
            Some(text) => format!("'{}'", text.replace('\'', "''")),
            None => "NULL".to_owned(),
        };
        let literals: Vec<_> = values.iter().map(|(_, value)| literal(value)).collect();
        self.execute(&format!("INSERT INTO {table} ({}) VALUES ({})", names.join(", "), literals.join(", ")))
            .await;
    }

    /// Puts in user 1, active.
    pub async fn user(&self) {
        let values = [
            ("id", Some("1")),
            ("email", Some("ada@example.com")),
            ("username", Some("ada")),
            ("hashed_password", Some("!")),
            ("is_active", Some("1")),
            ("is_superuser", Some("0")),
        ];
        self.insert("users", &values).await;
    }

    /// Puts in an active key of user 1, whose credential is [`CREDENTIAL`]; `changes` come on top.
    pub async fn key(&self, id: &str, changes: &[(&str, Option<&str>)]) {
        let base = [
            ("id", Some(id)),
            ("key_hash", Some(HASH)),
            ("key_prefix", Some(&CREDENTIAL[..8])),
            ("user_id", Some("1")),
            ("is_active", Some("1")),
        ];
        let kept = base.iter().filter(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
        let values: Vec<_> = kept.chain(changes).copied().collect();
        self.insert("api_keys", &values).await;
    }

    /// Puts in a budget of user 1 for 2026, unused, of 100 cents; `changes` come on top.
    pub async fn budget(&self, id: &str, changes: &[(&str, Option<&str>)]) {
        let base = [
            ("id", Some(id)),
            ("user_id", Some("1")),
            ("limit_cents", Some("100")),
            ("period_start", Some("2026-01-01 00:00:00")),
            ("period_end", Some("2027-01-01 00:00:00")),
        ];
        let kept = base.iter().filter(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
        let values: Vec<_> = kept.chain(changes).copied().collect();
        self.insert("budgets", &values).await;
    }

    /// How many rows were counted as undecodable.
    pub fn undecodable(&self) -> u64 {
        let text = self.metrics.render();
        let line = text.lines().find_map(|line| line.strip_prefix("keystile_undecodable_rows_total "));
        line.map_or(0, |count| count.parse().expect("a count"))
    }
}

/// Options that name this database.
pub fn options(url: &str, timeout_millis: u64) -> DatabaseOptions {
    DatabaseOptions {
        database_url: url.parse::<DatabaseUrl>().expect("a URL"),
        database_timeout: std::time::Duration::from_millis(timeout_millis),
        change_feed_url: None,
        database_connections: 8,
    }
}

/// The prefix of [`CREDENTIAL`].
pub fn prefix() -> Prefix {
    Prefix::parse(&CREDENTIAL[..8]).expect("a prefix")
}

fn older(serial: &str, json: &str, number: &str) -> String {
    OLDER.replace("{serial}", serial).replace("{json}", json).replace("{number}", number)
}

fn file_in(folder: &TempDir) -> PathBuf {
    folder.path().join("keystile.db")
}

fn sqlite(folder: &TempDir) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(file_in(folder)).expect("opens");
    connection.busy_timeout(std::time::Duration::from_secs(5)).expect("takes it");
    connection
}
