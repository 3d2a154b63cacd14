//! Opens a file for reading only. Nothing is created, neither the file nor `-wal` and `-shm` next to it.

use std::{
    ffi::OsString,
    fs::File,
    io::Read,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use rusqlite::{Connection, OpenFlags};

/// A file that is read without locks, and its state when it was opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnlockedFile {
    len: u64,
    modified: Option<SystemTime>,
}

/// Opens the file.
///
/// For a file in WAL mode that no process has open, SQLite would create `-wal` and `-shm`, and leave them. Such a file
/// is read without locks. A process that opens it in the meantime changes its state.
pub(super) fn open(path: &Path) -> rusqlite::Result<(Connection, Option<UnlockedFile>)> {
    let unlocked = if is_in_wal_mode(path) { UnlockedFile::at(path) } else { None };
    let immutable = if unlocked.is_some() { "&immutable=1" } else { "" };
    // A relative path stays one: an encoded slash would be part of a name.
    let segments = path.as_os_str().as_bytes().split(|byte| *byte == b'/');
    let segments: Vec<_> =
        segments.map(|segment| percent_encode(segment, NON_ALPHANUMERIC).to_string()).collect();
    let uri = format!("file:{}?mode=ro{immutable}", segments.join("/"));
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    Ok((Connection::open_with_flags(uri, flags)?, unlocked))
}

impl UnlockedFile {
    /// The state of the file at the path. None if a process may have it open, or it cannot be read.
    pub(super) fn at(path: &Path) -> Option<Self> {
        let metadata = path.metadata().ok()?;
        let has_wal = wal_of(path).try_exists().unwrap_or(true);
        (!has_wal).then(|| Self { len: metadata.len(), modified: metadata.modified().ok() })
    }
}

fn wal_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push("-wal");
    name.into()
}

/// Whether the header of the file says so: bytes 18 and 19 are the versions of its format.
fn is_in_wal_mode(path: &Path) -> bool {
    let mut header = [0; 20];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    read.is_ok() && header.starts_with(b"SQLite format 3\0") && header[18..] == [2, 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_that_another_process_opens_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys.db");
        let write = |sql: &str| {
            let connection = Connection::open(&path).expect("opens");
            connection.execute_batch(sql).expect("writes");
            connection
        };
        drop(write("PRAGMA journal_mode = wal; CREATE TABLE t (n integer)"));
        let (reader, unlocked) = open(&path).expect("opens");
        assert!(unlocked.is_some() && unlocked == UnlockedFile::at(&path), "no process has it open");
        let other = write("INSERT INTO t VALUES (1)");
        assert_eq!(UnlockedFile::at(&path), None, "another process has it open");
        drop((reader, other));
        assert_ne!(UnlockedFile::at(&path), unlocked, "another process has written it");
        let _other = write("SELECT 1; INSERT INTO t VALUES (2)");
        assert_eq!(open(&path).expect("opens").1, None, "a file in use is read with locks");
    }
}
