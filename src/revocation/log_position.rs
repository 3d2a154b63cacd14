//! Position of a read in the log: the changes that it had seen, and the epoch of the database. Pure.

use std::{fmt, str::FromStr};

use super::snapshot::Snapshot;

/// A position in the log of changes.
///
/// Change numbers can be compared within one epoch only. An epoch ends when the server restarts, when another server
/// takes its place, and when the tables or triggers change. After each of these, the same number may belong to another
/// change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPosition {
    epoch: u64,
    snapshot: Snapshot,
}

/// The text is not of the form `epoch/xmin:xmax:xip_list`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a log position of the form epoch/xmin:xmax:xip_list")]
pub struct NoLogPosition;

impl LogPosition {
    /// The changes that `snapshot` sees, in this epoch.
    pub fn new(epoch: u64, snapshot: Snapshot) -> Self {
        Self { epoch, snapshot }
    }

    /// The epoch in which its change numbers are valid.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The changes that it sees.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}

impl FromStr for LogPosition {
    type Err = NoLogPosition;

    fn from_str(text: &str) -> Result<Self, NoLogPosition> {
        let (epoch, snapshot) = text.split_once('/').ok_or(NoLogPosition)?;
        let digits = epoch.bytes().all(|byte| byte.is_ascii_digit());
        let epoch = epoch.parse().ok().filter(|_| digits).ok_or(NoLogPosition)?;
        Ok(Self { epoch, snapshot: snapshot.parse().map_err(|_| NoLogPosition)? })
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.epoch, self.snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(text: &str) -> LogPosition {
        text.parse().expect(text)
    }

    #[test]
    fn text_is_read_as_it_is_written() {
        for text in ["7/10:20:10,14,15", "0/1:1:", "18446744073709551615/3:3:"] {
            assert_eq!(position(text).to_string(), text);
        }
        for bad in ["", "10:20:", "/10:20:", "+7/10:20:", "7/", "x/10:20:", "7/8/10:20:"] {
            assert!(bad.parse::<LogPosition>().is_err(), "{bad}");
        }
    }
}
