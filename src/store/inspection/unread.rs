//! Columns that Keystile does not read, although their names say that they restrict keys.

use super::{FindingKind, Inspector};
use crate::{
    findings::{Location, Severity},
    store::{management, watched_tables::read_columns},
};

/// A column of `api_keys` or `users` that may restrict keys.
pub(super) struct UnreadColumn {
    pub(super) table: &'static str,
    pub(super) name: String,
    pub(super) kind: FindingKind,
    pub(super) severity: Severity,
}

/// Parts of the names of columns that mark a row as revoked.
const REVOCATIONS: [&str; 8] =
    ["revoked", "disabled", "deleted", "blocked", "banned", "suspended", "compromised", "deactivated"];

/// Parts of the names of columns that restrict what a row may do.
const RESTRICTIONS: [&str; 17] = [
    "allow",
    "deny",
    "denied",
    "forbidden",
    "restrict",
    "blacklist",
    "whitelist",
    "limit",
    "quota",
    "expir",
    "valid_",
    "not_before",
    "not_after",
    "max_",
    "blocked_",
    "origin",
    "referer",
];

/// Parts of the names of columns that only explain others.
const EXPLANATIONS: [&str; 5] = ["reason", "comment", "note", "message", "password"];

/// A column of `users` that every such table has.
const PASSWORD: &str = "hashed_password";

impl Inspector<'_> {
    /// Reports the columns that are not read, and returns those whose values matter.
    pub(super) fn examine_columns(&mut self) -> Vec<UnreadColumn> {
        let mut suspects = Vec::new();
        for (table, read) in read_columns(&self.schema) {
            let columns = self.schema.columns(table);
            let is_known = |column: &str| {
                read.contains(&column) || management::knows_column(table, column) || column == PASSWORD
            };
            let is_unread = |column: &&str| !is_known(column);
            let unread: Vec<_> = columns.into_iter().filter(is_unread).map(str::to_owned).collect();
            if unread.is_empty() {
                continue;
            }
            let (kind, location) = (FindingKind::ColumnUnread, Location::table(table));
            self.report(kind, Severity::Note, location, &unread.join(", "));
            if matches!(table, "api_keys" | "users") {
                suspects.extend(unread.into_iter().filter_map(|name| UnreadColumn::new(table, name)));
            }
        }
        suspects
    }
}

impl UnreadColumn {
    /// None if nothing in its name says that it restricts.
    fn new(table: &'static str, name: String) -> Option<Self> {
        let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
        if has(&EXPLANATIONS) {
            return None;
        }
        // `blocked_ips` is a list.
        let is_list = name.starts_with("blocked_") && name.ends_with('s');
        let (kind, severity) = if has(&REVOCATIONS) && !is_list {
            (FindingKind::RevocationUnread, Severity::Error)
        } else if has(&RESTRICTIONS) {
            (FindingKind::RestrictionUnread, Severity::Warning)
        } else {
            return None;
        };
        Some(Self { table, name, kind, severity })
    }

    /// Whether a value of the column restricts its row.
    pub(super) fn is_set(value: &str) -> bool {
        let unset = ["", "0", "f", "false", "no", "[]", "{}", "null"];
        !unset.contains(&&*value.trim().to_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_a_column_says_whether_it_restricts() {
        let kind = |name: &str| UnreadColumn::new("api_keys", name.to_owned()).map(|column| column.kind);
        for name in ["revoked", "revoked_at", "is_disabled", "deleted_at", "blocked_at", "suspended_until"] {
            assert_eq!(kind(name), Some(FindingKind::RevocationUnread), "{name}");
        }
        for name in ["allowed_domains", "blocked_ips", "max_tokens", "monthly_quota", "valid_until"] {
            assert_eq!(kind(name), Some(FindingKind::RestrictionUnread), "{name}");
        }
        for name in ["description", "revocation_reason", "hashed_password", "team_id", "rotated_at"] {
            assert_eq!(kind(name), None, "{name}");
        }
    }

    #[test]
    fn value_that_means_nothing_is_not_set() {
        for value in ["", "0", "False", "f", "[]", " null "] {
            assert!(!UnreadColumn::is_set(value), "{value:?}");
        }
        for value in ["1", "true", "2026-01-01", r#"["a"]"#] {
            assert!(UnreadColumn::is_set(value), "{value:?}");
        }
    }
}
