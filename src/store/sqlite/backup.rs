//! A copy of a SQLite file that is in use.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, backup::Backup};

use super::file::{SqliteFile, create_new_private};
use crate::store::{StoreError, statement::Deadline};

impl SqliteFile {
    /// Copies the database into a new file that only its owner can read. The copy includes what is only in the
    /// write-ahead log so far, and is one file.
    ///
    /// # Errors
    /// [`StoreError`] if the new file exists already or cannot be written, or if the copy is not intact. The new file is
    /// removed then.
    pub(crate) async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        let unavailable =
            |error: String| StoreError::Unavailable(format!("cannot write {}: {error}", to.display()).into());
        create_new_private(to).map_err(|error| unavailable(error.to_string()))?;
        let path = to.to_owned();
        let copied = self.run(Deadline::Operator, move |connection| Ok(copy(connection, &path))).await?;
        copied.map_err(|error| {
            // A part of a copy must not pass for a backup.
            let _ = std::fs::remove_file(to);
            unavailable(error)
        })
    }
}

fn copy(from: &Connection, to: &Path) -> Result<(), String> {
    let copy = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut to = Connection::open_with_flags(to, flags)?;
        // In one step: between steps, a writer could make it start again.
        Backup::new(from, &mut to)?.step(-1)?;
        // Otherwise the next program that opens the copy creates a write-ahead log next to it.
        to.pragma_update(None, "journal_mode", "delete")?;
        to.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0))
    };
    match copy() {
        Ok(verdict) if verdict == "ok" => Ok(()),
        Ok(verdict) => Err(verdict),
        Err(error) => Err(error.to_string()),
    }
}
