//! A SQLite file, its connections, and the statements and transactions that run on them. All work runs on blocking
//! threads.

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
    file_access::FileAccess,
    read_only::{self, UnlockedFile},
};
use crate::{
    dependencies::{Cause, ErrorText},
    store::{
        SqlValue, StoreError,
        statement::{
            Access, ConnectionCounts, Deadline, Progress, Rows, Statement, Step, TransactionOutcome,
        },
    },
};

/// A database file. Cheap to clone.
#[derive(Clone)]
pub(crate) struct SqliteFile(Arc<Inner>);

struct Inner {
    path: PathBuf,
    timeout: Duration,
    access: Access,
    idle: Mutex<Vec<OpenFile>>,
    /// Set once the file was opened. From then on, a missing file is an error, and is not created again.
    was_opened: AtomicBool,
    /// Bounds the threads that a slow disk can block.
    permits: Arc<Semaphore>,
    limit: u32,
    /// Held while the tables of an empty file are created.
    creation: tokio::sync::Mutex<()>,
}

/// A connection, and the file that it has open.
struct OpenFile {
    connection: Connection,
    file: FileId,
    /// The state of the file, if it is read without locks.
    unlocked: Option<UnlockedFile>,
}

/// A file, independent of its name: another file may have been renamed to its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
    created: Option<SystemTime>,
}

impl SqliteFile {
    pub(crate) fn new(path: &Path, timeout: Duration, connections: u32, access: Access) -> Self {
        Self(Arc::new(Inner {
            path: path.to_owned(),
            timeout,
            access,
            idle: Mutex::default(),
            was_opened: AtomicBool::new(false),
            permits: Arc::new(Semaphore::new(connections as usize)),
            limit: connections,
            creation: tokio::sync::Mutex::default(),
        }))
    }

    pub(crate) async fn query(&self, deadline: Deadline, statement: Statement) -> Result<Rows, StoreError> {
        self.run(deadline, move |connection| run(connection, &statement)).await
    }

    pub(crate) async fn transaction(
        &self,
        statements: Vec<Statement>,
        needs_rows: bool,
        progress: Progress,
    ) -> Result<TransactionOutcome, StoreError> {
        let inner = Arc::clone(&self.0);
        self.run(Deadline::Operator, move |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let (mut returned, mut empty) = (Vec::with_capacity(statements.len()), Vec::new());
            for (at, statement) in statements.iter().enumerate() {
                if statement.is_final && !empty.is_empty() {
                    continue;
                }
                let rows = match run(&transaction, statement) {
                    Ok(rows) => rows,
                    Err(error) => return Ok(TransactionOutcome::Failed(at, inner.explain(&error))),
                };
                if (needs_rows || statement.is_required) && rows.is_empty() {
                    empty.push(at);
                }
                returned.push(rows);
                progress(at + 1);
            }
            if !empty.is_empty() {
                transaction.rollback()?;
                return Ok(TransactionOutcome::RolledBack(empty));
            }
            transaction.commit()?;
            Ok(TransactionOutcome::Committed(returned))
        })
        .await
    }

    pub(crate) async fn transact<T, E>(
        &self,
        first: Statement,
        mut next: impl FnMut(Rows) -> Result<Step<T>, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let work = self.run(Deadline::Operator, move |connection| {
            // Nothing else writes from here on, so what is read stays as it is.
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut statement = first;
            loop {
                // Dropped without a commit, it is rolled back.
                match next(run(&transaction, &statement)?) {
                    Ok(Step::Run(other)) => statement = other,
                    Ok(Step::Commit(value)) => {
                        transaction.commit()?;
                        return Ok(Ok(value));
                    }
                    Ok(Step::Abandon(value)) => return Ok(Ok(value)),
                    Err(error) => return Ok(Err(error)),
                }
            }
        });
        work.await?
    }

    /// The file at the path, by device and inode. Empty while there is none.
    pub(crate) fn identity(&self) -> String {
        file_at(&self.0.path).map_or_else(|_| String::new(), |file| format!("{file:?}"))
    }

    /// Who can use the file. None while there is none.
    pub(crate) fn access(&self) -> Option<FileAccess> {
        FileAccess::of(&self.0.path).ok()
    }

    /// Waits until no other task creates the tables.
    pub(super) async fn creation(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.creation.lock().await
    }

    /// Closes the connections.
    pub(crate) fn reconnect(&self) {
        self.0.idle.lock().clear();
    }

    /// Open connections, those that are used, and their maximum number.
    pub(crate) fn connections(&self) -> ConnectionCounts {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (limit, free) = (self.0.limit, number(self.0.permits.available_permits()));
        ConnectionCounts { used: limit.saturating_sub(free), idle: number(self.0.idle.lock().len()), limit }
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        deadline: Deadline,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.0);
        let work = async move {
            let permit = Arc::clone(&inner.permits).acquire_owned().await;
            let blocking = tokio::task::spawn_blocking(move || {
                // Held until the end of the work, which continues when its caller stops waiting.
                let _permit = permit;
                inner.work(work)
            });
            blocking.await.unwrap_or_else(|_| Err(StoreError::Unavailable("its thread ended early".into())))
        };
        match deadline {
            Deadline::Check => {
                let timeout = self.0.timeout;
                tokio::time::timeout(timeout, work).await.unwrap_or(Err(StoreError::Timeout(timeout)))
            }
            // SQLite itself waits for a lock no longer than the timeout.
            Deadline::Operator => work.await,
        }
    }
}

impl Inner {
    fn work<T>(&self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let mut open = self.idle().map_or_else(|| self.open(), Ok)?;
        // A connection that failed is closed, since its state is unknown.
        let result = work(&mut open.connection).map_err(|error| self.explain(&error))?;
        if open.unlocked.is_some() && open.unlocked != UnlockedFile::at(&self.path) {
            return Err(StoreError::Unavailable(
                format!("another process opened sqlite:{} during a read; try again", self.path.display())
                    .into(),
            ));
        }
        self.idle.lock().push(open);
        Ok(result)
    }

    /// An idle connection to the file at the path. Connections to an earlier file are closed.
    fn idle(&self) -> Option<OpenFile> {
        let file = file_at(&self.path).ok()?;
        let mut idle = self.idle.lock();
        idle.retain(|open| open.file == file);
        idle.pop()
    }

    /// Opens the file. Creates it on first use.
    fn open(&self) -> Result<OpenFile, StoreError> {
        let unavailable = |what: &str, error: std::io::Error| {
            let text = format!("cannot {what} sqlite:{}: {error}", self.path.display());
            StoreError::Unavailable(ErrorText::new(Cause::File, text))
        };
        if self.access == Access::ReadWrite && !self.was_opened.load(Ordering::Relaxed) {
            create_private(&self.path).map_err(|error| unavailable("create", error))?;
        }
        let file = file_at(&self.path).map_err(|error| unavailable("open", error))?;
        let (connection, unlocked) = self.connect().map_err(|error| self.explain(&error))?;
        // Another file may have been renamed to the path in between.
        if file_at(&self.path).map_err(|error| unavailable("open", error))? != file {
            return Err(StoreError::Unavailable(ErrorText::new(
                Cause::File,
                "its file was replaced while it was opened",
            )));
        }
        self.was_opened.store(true, Ordering::Relaxed);
        Ok(OpenFile { connection, file, unlocked })
    }

    fn connect(&self) -> rusqlite::Result<(Connection, Option<UnlockedFile>)> {
        if self.access == Access::ReadOnly {
            let (connection, unlocked) = read_only::open(&self.path)?;
            connection.busy_timeout(self.timeout)?;
            return Ok((connection, unlocked));
        }
        // Not URI: a file name is a file name. Not CREATE: the file is there, with its mode.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(self.timeout)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
        if !mode.eq_ignore_ascii_case("wal") {
            // Readers then never wait for a writer. A file that cannot be switched still works.
            let _ = connection.pragma_update(None, "journal_mode", "wal");
        }
        Ok((connection, None))
    }

    fn explain(&self, error: &rusqlite::Error) -> StoreError {
        let path = self.path.display();
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => StoreError::Unfit(ErrorText::new(
                Cause::File,
                format!("sqlite:{path} is no SQLite database; set --database-url to one"),
            )),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Unavailable(
                ErrorText::new(Cause::Locked, format!("sqlite:{path} is locked by another process")),
            ),
            Some(ErrorCode::Unknown | ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch) => {
                StoreError::Unfit(ErrorText::new(
                    Cause::Refused,
                    format!("sqlite:{path} refuses: {}", message(error)),
                ))
            }
            Some(ErrorCode::DiskFull | ErrorCode::OutOfMemory) => StoreError::Unavailable(ErrorText::new(
                Cause::Full,
                format!("sqlite:{path}: {}", message(error)),
            )),
            _ => StoreError::Unavailable(ErrorText::new(
                Cause::File,
                format!("sqlite:{path}: {}", message(error)),
            )),
        }
    }
}

/// SQLite's own message. It has names of columns and the like, and no values.
fn message(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(code, text) => text.clone().unwrap_or_else(|| code.to_string()),
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        other => other.to_string(),
    }
}

fn file_at(path: &Path) -> std::io::Result<FileId> {
    let metadata = std::fs::metadata(path)?;
    // Inodes are reused. Not every file system has creation times.
    Ok(FileId { device: metadata.dev(), inode: metadata.ino(), created: metadata.created().ok() })
}

/// Creates the file if it does not exist, with a mode that only its owner can read. SQLite gives `-wal` and `-shm` the
/// same mode.
fn create_private(path: &Path) -> std::io::Result<()> {
    match create_new_private(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Creates a file with a mode that only its owner can read. It must not exist.
pub(super) fn create_new_private(path: &Path) -> std::io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map(drop)
}

fn run(connection: &Connection, statement: &Statement) -> rusqlite::Result<Rows> {
    let mut prepared = connection.prepare_cached(&statement.sql)?;
    let columns = prepared.column_count();
    let rows = prepared.query_map(params_from_iter(&statement.params), |row| {
        (0..columns).map(|at| row.get_ref(at).map(text)).collect()
    })?;
    rows.collect()
}

fn text(value: ValueRef<'_>) -> SqlValue {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
        // Invalid bytes become U+FFFD, which no rule accepts and no list matches.
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
    }
}
