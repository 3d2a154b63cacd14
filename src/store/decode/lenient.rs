//! Decodes a row in spite of values that cannot be decoded, and returns all of them.

use super::{COLUMNS, DecodeError, HASH, decode};
use crate::{config::AccountLock, record::KeyRecord, store::Row};

/// Decodes the values of one row, in the order of [`COLUMNS`]. Each value that cannot be decoded is replaced: a flag by
/// true, so that the key counts as one that its owner expects to work.
pub(crate) fn decode_leniently(mut values: Row, locks: AccountLock) -> (Option<KeyRecord>, Vec<DecodeError>) {
    let mut problems = Vec::new();
    // Each turn replaces one value.
    for _ in 0..=COLUMNS.len() {
        let problem = match decode(&values, locks) {
            Ok(record) => return (Some(record), problems),
            Err(problem) => problem,
        };
        replace(&mut values, (problem.table, problem.column));
        if (problem.table, problem.column) == USER_ID {
            replace(&mut values, ("users", "is_active"));
        }
        problems.push(problem);
    }
    (None, problems)
}

/// Its value is NULL where a key has no user.
pub(crate) const USER_ID: (&str, &str) = ("users", "id");

/// A hash that no credential is known for.
const SOME_HASH: &str = "$2b$04$.....................................................";

fn replace(values: &mut Row, column: (&str, &str)) {
    let Some(at) = COLUMNS.iter().position(|known| *known == column) else { return };
    let placeholder = match column {
        HASH => Some(SOME_HASH),
        ("api_keys", "key_prefix") => Some("unknown_"),
        (_, "id") => Some("0"),
        (_, "is_active") => Some("true"),
        _ => None,
    };
    values[at] = placeholder.map(str::to_owned);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::decode::fixtures::row_with;

    #[test]
    fn every_value_that_cannot_be_decoded_is_returned() {
        let row = row_with(&[
            ("id", Some("x")),
            ("key_prefix", Some("short")),
            ("key_hash", Some("$argon2id$")),
            ("is_active", Some("maybe")),
            ("expires_at", Some("soon")),
            ("total_cost", Some("much")),
            ("users.id", None),
            ("users.is_active", None),
            ("users.account_locked", Some("perhaps")),
        ]);
        let (record, problems) = decode_leniently(row, AccountLock::Deny);
        let columns: Vec<_> = problems.iter().map(|problem| (problem.table, problem.column)).collect();
        let expected = [
            ("api_keys", "id"),
            ("api_keys", "key_prefix"),
            ("api_keys", "key_hash"),
            ("api_keys", "is_active"),
            ("api_keys", "expires_at"),
            ("users", "id"),
            ("users", "account_locked"),
            ("api_keys", "total_cost"),
        ];
        assert_eq!(columns, expected);
        let record = record.expect("decoded");
        assert!(record.is_active && record.user.is_active);
    }

    #[test]
    fn row_without_problems_is_decoded_as_always() {
        let row = row_with(&[]);
        let record = decode(&row, AccountLock::Deny).ok();
        assert_eq!(decode_leniently(row, AccountLock::Deny), (record, vec![]));
    }

    #[test]
    fn every_column_can_be_replaced() {
        for (table, column) in COLUMNS {
            let mut row = row_with(&[]);
            replace(&mut row, (table, column));
            assert!(decode(&row, AccountLock::Deny).is_ok(), "{table}.{column}");
        }
    }
}
