//! The database of one world, and what operators do to it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::types::ValueRef;
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::harness::{
    cluster::{Backup, Cluster},
    proxy::Proxy,
};

/// Where the tables are.
pub enum Database {
    Postgres(Box<Server>),
    File(File),
}

/// A server, and the proxy that instances find it by.
pub struct Server {
    pub primary: Cluster,
    /// What instances read, if it is not the primary.
    pub replica: Option<Cluster>,
    /// Backups, with whether the triggers were whole at that time.
    pub backups: Vec<(Backup, bool)>,
    /// A session of the application's, which outlives its migrations.
    session: Mutex<Option<Client>>,
    /// Who instances log in as.
    pub role: &'static str,
    pub proxy: Proxy,
}

/// A SQLite file.
pub struct File {
    folder: TempDir,
}

/// Texts, or NULL.
pub type Rows = Vec<Vec<Option<String>>>;

impl Database {
    pub async fn server(with_replica: bool, role: &'static str) -> Self {
        let primary = Cluster::start();
        primary
            .execute(
                "CREATE ROLE reader LOGIN; CREATE ROLE app LOGIN; CREATE ROLE guest LOGIN;
                ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO reader, app;
                ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO reader, app;
                ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO reader, app",
            )
            .await;
        let replica = with_replica.then(|| primary.standby());
        let proxy = Proxy::before(replica.as_ref().unwrap_or(&primary).address()).await;
        let session = Mutex::default();
        Self::Postgres(Box::new(Server { primary, replica, backups: Vec::new(), session, role, proxy }))
    }

    pub fn file() -> Self {
        Self::File(File { folder: tempfile::tempdir().unwrap() })
    }

    /// What instances find it by.
    pub fn url(&self) -> String {
        match self {
            Self::Postgres(server) => {
                let read = server.replica.as_ref().unwrap_or(&server.primary);
                server.proxy.url(&read.url_as(server.role, ""), read.address())
            }
            Self::File(file) => file.url(),
        }
    }

    /// What its owner finds it by.
    pub fn owners_url(&self) -> String {
        match self {
            Self::Postgres(server) => server.primary.url(),
            Self::File(file) => file.url(),
        }
    }

    /// Runs a script on it.
    pub async fn execute(&self, sql: &str) -> Result<(), String> {
        match self {
            Self::Postgres(server) => loop {
                match connect(&server.primary).await?.batch_execute(sql).await {
                    Ok(()) => return Ok(()),
                    Err(error) if is_conflict(&error) => {}
                    Err(error) => return Err(format!("{error:?} in {sql}")),
                }
            },
            Self::File(file) => file.open()?.execute_batch(sql).map_err(|error| format!("{error} in {sql}")),
        }
    }

    /// Runs a script on it in a session that has been there for long, where there are sessions.
    pub async fn execute_in_old_session(&self, sql: &str) -> Result<(), String> {
        let Self::Postgres(server) = self else { return self.execute(sql).await };
        let mut session = server.session.lock().await;
        let client = match session.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => connect(&server.primary).await?,
        };
        match client.batch_execute(sql).await {
            Ok(()) => {
                *session = Some(client);
                Ok(())
            }
            // It ended with its server.
            Err(error) if error.is_closed() || is_shutdown(&error) || is_conflict(&error) => {
                self.execute(sql).await
            }
            Err(error) => Err(format!("{error:?} in {sql}")),
        }
    }

    /// What a query finds.
    pub async fn rows(&self, sql: &str) -> Result<Rows, String> {
        match self {
            Self::Postgres(server) => {
                let client = connect(&server.primary).await?;
                let messages =
                    client.simple_query(sql).await.map_err(|error| format!("{error:?} in {sql}"))?;
                let row = |message| match message {
                    SimpleQueryMessage::Row(row) => {
                        Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect())
                    }
                    _ => None,
                };
                Ok(messages.into_iter().filter_map(row).collect())
            }
            Self::File(file) => file.rows(sql).map_err(|error| format!("{error} in {sql}")),
        }
    }

    /// The server, where it is one.
    pub fn as_server(&mut self) -> Option<&mut Server> {
        match self {
            Self::Postgres(server) => Some(server),
            Self::File(_) => None,
        }
    }

    /// The file, where it is one.
    pub fn as_file(&mut self) -> Option<&mut File> {
        match self {
            Self::Postgres(_) => None,
            Self::File(file) => Some(file),
        }
    }
}

/// Two writers met under repeatable read, of whom one counts how often keys are used: to be repeated.
pub fn is_conflict(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&tokio_postgres::error::SqlState::T_R_SERIALIZATION_FAILURE)
}

fn is_shutdown(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code().starts_with("57P"))
}

async fn connect(cluster: &Cluster) -> Result<Client, String> {
    let connected = tokio_postgres::connect(&cluster.url(), NoTls).await;
    let (client, connection) = connected.map_err(|error| format!("{error:?}: {}", cluster.log()))?;
    tokio::spawn(connection);
    Ok(client)
}

impl File {
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("keystile.db")
    }

    fn url(&self) -> String {
        format!("sqlite:{}", self.path().display())
    }

    pub fn open(&self) -> Result<rusqlite::Connection, String> {
        open(&self.path())
    }

    fn rows(&self, sql: &str) -> rusqlite::Result<Rows> {
        let connection = self.open().map_err(rusqlite::Error::InvalidParameterName)?;
        let mut statement = connection.prepare(sql)?;
        let columns = statement.column_count();
        let text = |value: ValueRef<'_>| match value {
            ValueRef::Null => None,
            ValueRef::Integer(number) => Some(number.to_string()),
            ValueRef::Real(number) => Some(number.to_string()),
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                Some(String::from_utf8_lossy(bytes).into_owned())
            }
        };
        let rows =
            statement.query_map([], |row| (0..columns).map(|at| row.get_ref(at).map(text)).collect())?;
        rows.collect()
    }

    /// A path for one more copy.
    pub fn new_path(&self) -> PathBuf {
        self.folder.path().join(format!("copy-{}.db", rand::random::<u32>()))
    }

    /// Moves a file over the database, and removes what belonged to the old one.
    pub fn replace_by(&self, copy: &Path) -> Result<(), String> {
        let problem = |error: std::io::Error| error.to_string();
        // So that nothing of the old one is left in files that the new one would take for its own.
        let _ = self.open()?.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
        std::fs::rename(copy, self.path()).map_err(problem)?;
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", self.path().display()));
        }
        Ok(())
    }
}

pub fn open(path: &Path) -> Result<rusqlite::Connection, String> {
    let connection = rusqlite::Connection::open(path).map_err(|error| error.to_string())?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(|error| error.to_string())?;
    Ok(connection)
}
