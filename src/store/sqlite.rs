//! SQLite: one file, no server. Works on blocking threads, never on the async ones.

use std::{
    fs::OpenOptions,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, params_from_iter, types::ValueRef};
use tokio::sync::Semaphore;

use super::{
    StoreError,
    cell::Cell,
    sql::{Outcome, Patience, Progress, Rows, Statement},
};

pub(super) mod change_log;
pub(super) mod triggers;

/// A database file. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sqlite(Arc<Inner>);

struct Inner {
    path: PathBuf,
    timeout: Duration,
    idle: Mutex<Vec<Open>>,
    /// Set once the file was opened. From then on, a file that is gone is an error, and is not made again.
    was_opened: AtomicBool,
    /// Bounds the threads that one slow disk can take.
    permits: Arc<Semaphore>,
}

/// A connection, and the file that it has open.
struct Open {
    connection: Connection,
    file: FileId,
}

/// A file, whatever its name: another one may have been renamed to its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
    created: Option<SystemTime>,
}

impl Sqlite {
    pub(crate) fn new(path: &Path, timeout: Duration, connections: u32) -> Self {
        Self(Arc::new(Inner {
            path: path.to_owned(),
            timeout,
            idle: Mutex::default(),
            was_opened: AtomicBool::new(false),
            permits: Arc::new(Semaphore::new(connections as usize)),
        }))
    }

    pub(crate) async fn query(&self, patience: Patience, statement: Statement) -> Result<Rows, StoreError> {
        self.run(patience, move |connection| run(connection, &statement)).await
    }

    pub(crate) async fn transaction(
        &self,
        statements: Vec<Statement>,
        needs_rows: bool,
        progress: Progress,
    ) -> Result<Outcome, StoreError> {
        let inner = Arc::clone(&self.0);
        self.run(Patience::Person, move |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut empty = Vec::new();
            for (at, statement) in statements.iter().enumerate() {
                if statement.is_final && !empty.is_empty() {
                    continue;
                }
                let rows = match run(&transaction, statement) {
                    Ok(rows) => rows,
                    Err(error) => return Ok(Outcome::Failed(at, inner.explain(&error))),
                };
                if needs_rows && rows.is_empty() {
                    empty.push(at);
                }
                progress(at + 1);
            }
            if !empty.is_empty() {
                transaction.rollback()?;
                return Ok(Outcome::Refused(empty));
            }
            transaction.commit()?;
            Ok(Outcome::Committed)
        })
        .await
    }

    /// The file at the path, by device and inode; empty while there is none.
    pub(crate) fn identity(&self) -> String {
        file_at(&self.0.path).map_or_else(|_| String::new(), |file| format!("{file:?}"))
    }

    /// Closes the connections.
    pub(crate) fn reconnect(&self) {
        self.0.idle.lock().clear();
    }

    /// Connections that are open and idle.
    pub(crate) fn connections(&self) -> u32 {
        let idle = self.0.idle.lock();
        u32::try_from(idle.len()).unwrap_or(u32::MAX)
    }

    async fn run<T: Send + 'static>(
        &self,
        patience: Patience,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.0);
        let work = async move {
            let permit = Arc::clone(&inner.permits).acquire_owned().await;
            let blocking = tokio::task::spawn_blocking(move || {
                // Held to the end of the work, which outlives a caller who stopped waiting.
                let _permit = permit;
                inner.work(work)
            });
            blocking.await.unwrap_or_else(|_| Err(StoreError::Unavailable("its thread ended early".into())))
        };
        match patience {
            Patience::Check => {
                let timeout = self.0.timeout;
                tokio::time::timeout(timeout, work).await.unwrap_or(Err(StoreError::Timeout(timeout)))
            }
            // Bounded by SQLite itself, which waits no longer than the timeout for a lock.
            Patience::Person => work.await,
        }
    }
}

impl Inner {
    fn work<T>(&self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let mut open = self.idle().map_or_else(|| self.open(), Ok)?;
        // A connection that failed is closed: whatever state it was in goes with it.
        let result = work(&mut open.connection).map_err(|error| self.explain(&error))?;
        self.idle.lock().push(open);
        Ok(result)
    }

    /// An idle connection to the file that is at the path now. Connections to a file that was there before are closed.
    fn idle(&self) -> Option<Open> {
        let file = file_at(&self.path).ok()?;
        let mut idle = self.idle.lock();
        idle.retain(|open| open.file == file);
        idle.pop()
    }

    /// Opens the file, which need not be there yet.
    fn open(&self) -> Result<Open, StoreError> {
        let unavailable = |what: &str, error: std::io::Error| {
            StoreError::Unavailable(format!("cannot {what} sqlite:{}: {error}", self.path.display()).into())
        };
        if !self.was_opened.load(Ordering::Relaxed) {
            create_private(&self.path).map_err(|error| unavailable("create", error))?;
        }
        let file = file_at(&self.path).map_err(|error| unavailable("open", error))?;
        let connection = self.connect().map_err(|error| self.explain(&error))?;
        // Another file may have taken the path in between.
        if file_at(&self.path).map_err(|error| unavailable("open", error))? != file {
            return Err(StoreError::Unavailable("its file was replaced while it was opened".into()));
        }
        self.was_opened.store(true, Ordering::Relaxed);
        Ok(Open { connection, file })
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        // Not URI: a file name is a file name. Not CREATE: the file is there, with its mode.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(self.timeout)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
        if !mode.eq_ignore_ascii_case("wal") {
            // So that readers never wait for a writer; what cannot be switched still works.
            let _ = connection.pragma_update(None, "journal_mode", "wal");
        }
        Ok(connection)
    }

    fn explain(&self, error: &rusqlite::Error) -> StoreError {
        let path = self.path.display();
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => StoreError::Unfit(
                format!("sqlite:{path} is no SQLite database; set --database-url to one").into(),
            ),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                StoreError::Unavailable(format!("sqlite:{path} is locked by another process").into())
            }
            Some(ErrorCode::Unknown | ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch) => {
                StoreError::Unfit(format!("sqlite:{path} refuses: {}", message(error)).into())
            }
            _ => StoreError::Unavailable(format!("sqlite:{path}: {}", message(error)).into()),
        }
    }
}

/// SQLite's own words: column names and the like, no values.
fn message(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(code, text) => text.clone().unwrap_or_else(|| code.to_string()),
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        other => other.to_string(),
    }
}

fn file_at(path: &Path) -> std::io::Result<FileId> {
    let metadata = std::fs::metadata(path)?;
    // Inodes are used again; not every file system keeps the time of creation.
    Ok(FileId { device: metadata.dev(), inode: metadata.ino(), created: metadata.created().ok() })
}

/// Readable by its owner only, from its first moment; SQLite gives `-wal` and `-shm` the same mode.
fn create_private(path: &Path) -> std::io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn run(connection: &Connection, statement: &Statement) -> rusqlite::Result<Rows> {
    let mut prepared = connection.prepare_cached(&statement.sql)?;
    let columns = prepared.column_count();
    let rows = prepared.query_map(params_from_iter(&statement.params), |row| {
        (0..columns).map(|at| row.get_ref(at).map(text)).collect()
    })?;
    rows.collect()
}

fn text(value: ValueRef<'_>) -> Cell {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
        // Bytes that are no text become U+FFFD, which no rule accepts and no list matches.
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
    }
}
