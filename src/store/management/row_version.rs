//! Versions of rows, so that a change that was made from an older row is refused.

use std::{fmt, str::FromStr};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    columns::{self, VERSION},
    display_row::DisplayRow,
};

/// The version of a key or user: a hash of its columns, without those that use changes.
///
/// A row that has the same values again has the same version again. `updated_at` is left out, since some applications
/// set it with every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RowVersion(u64);

impl RowVersion {
    /// The version of this row.
    pub fn of(row: &DisplayRow) -> Self {
        // Without NULL: a column that is added later, or that another Keystile shows, changes no version.
        let values = row.values().filter(|(name, value)| columns::is_versioned(name) && !value.is_null());
        let digest = Sha256::digest(json!(values.collect::<Vec<_>>()).to_string());
        Self(digest.first_chunk().map_or(0, |first| u64::from_be_bytes(*first)))
    }
}

impl DisplayRow {
    /// The row with its version at the end.
    pub(super) fn with_version(self) -> Self {
        let version = RowVersion::of(&self).to_string();
        self.without(VERSION).with(VERSION, version)
    }
}

impl fmt::Display for RowVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for RowVersion {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u64::from_str_radix(text, 16).ok().filter(|_| is_hex);
        number.map(Self).ok_or("is not a version: 16 hexadecimal digits, as `keystile keys show` prints it")
    }
}
