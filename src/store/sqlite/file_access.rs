//! Who can use a database file.

use std::{io, os::unix::fs::MetadataExt, path::Path};

use rustix::fs::{Access, access};

/// The rights on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileAccess {
    /// Whether every user of the machine can read it.
    pub(crate) others_read: bool,
    /// Whether every user of the machine can write it.
    pub(crate) others_write: bool,
    /// Whether this process can write the file and its folder.
    pub(crate) is_writable: bool,
}

impl FileAccess {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let mode = path.metadata()?.mode();
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let is_writable = access(path, Access::WRITE_OK).is_ok() && access(folder, Access::WRITE_OK).is_ok();
        Ok(Self { others_read: mode & 0o004 != 0, others_write: mode & 0o002 != 0, is_writable })
    }
}
