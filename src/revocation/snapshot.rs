//! The changes that were committed when the database was read. Pure.
//!
//! A change is identified by the number of its transaction. Postgres does not commit transactions in the order of their
//! numbers, so one number cannot describe which changes a read has seen. A snapshot can, like Postgres's own
//! `pg_snapshot`:
//! - every change below `xmin` is seen;
//! - no change from `xmax` on is seen;
//! - between them, every change is seen except those listed as in progress.
//!
//! SQLite commits one change after the other, so its snapshots have an empty list.

use std::{fmt, str::FromStr};

/// The changes that were committed at one point in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Every change below this number is seen.
    xmin: u64,
    /// No change from this number on is seen.
    xmax: u64,
    /// These changes are not seen either: sorted, from `xmin` to `xmax`.
    in_progress: Box<[u64]>,
}

/// The text is not of the form `xmin:xmax:xip_list`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a snapshot of the form xmin:xmax:xip_list")]
pub struct NoSnapshot;

impl Snapshot {
    /// The first number that no transaction had at that time.
    pub fn next(&self) -> u64 {
        self.xmax
    }

    /// Whether this change was committed at that time.
    pub fn sees(&self, change: u64) -> bool {
        change < self.xmin || (change < self.xmax && self.in_progress.binary_search(&change).is_err())
    }

    /// Whether this snapshot sees every change that `other` sees.
    pub fn covers(&self, other: &Self) -> bool {
        let unseen = |change: &u64| !other.sees(*change);
        // There may be changes between `self.xmax` and `other.xmax` that only the other snapshot sees.
        let beyond = (self.xmax..other.xmax).all(|change| other.in_progress.binary_search(&change).is_ok());
        beyond && self.in_progress.iter().all(unseen)
    }
}

impl FromStr for Snapshot {
    type Err = NoSnapshot;

    fn from_str(text: &str) -> Result<Self, NoSnapshot> {
        let mut parts = text.splitn(3, ':');
        let mut bound = || parts.next().and_then(number).ok_or(NoSnapshot);
        let (xmin, xmax) = (bound()?, bound()?);
        let list = parts.next().ok_or(NoSnapshot)?;
        let in_progress = list.split(',').filter(|item| !item.is_empty());
        let in_progress: Box<[u64]> =
            in_progress.map(|item| number(item).ok_or(NoSnapshot)).collect::<Result<_, _>>()?;
        let within = in_progress.iter().all(|change| (xmin..xmax).contains(change));
        let valid = xmin <= xmax && within && in_progress.is_sorted();
        valid.then_some(Self { xmin, xmax, in_progress }).ok_or(NoSnapshot)
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (at, change) in self.in_progress.iter().enumerate() {
            write!(f, "{}{change}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// Accepts digits only: `parse` would also accept a sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().expect(text)
    }

    #[test]
    fn text_is_read_and_written_as_postgres_does() {
        for text in ["10:20:10,14,15", "7:7:", "1:18446744073709551615:3"] {
            assert_eq!(snapshot(text).to_string(), text);
        }
        for bad in ["", "7", "7:8", "8:7:", "a:b:", "1:5:7", "5:9:4", "1:9:5,3", "-1:4:", "1:2:+1", "1:9:2,x"]
        {
            assert!(bad.parse::<Snapshot>().is_err(), "{bad}");
        }
    }

    #[test]
    fn change_in_progress_is_not_seen_although_later_ones_are() {
        let seen = snapshot("10:20:10,14");
        for (change, expected) in [(9, true), (10, false), (13, true), (14, false), (19, true), (20, false)] {
            assert_eq!(seen.sees(change), expected, "{change}");
        }
    }

    fn any_snapshot() -> impl Strategy<Value = Snapshot> {
        (0u64..12, 0u64..6, proptest::collection::btree_set(0u64..18, 0..4)).prop_map(|(xmin, span, set)| {
            let xmax = xmin + span;
            let in_progress = set.into_iter().filter(|change| (xmin..xmax).contains(change)).collect();
            Snapshot { xmin, xmax, in_progress }
        })
    }

    proptest! {
        #[test]
        fn covers_is_seeing_all_that_the_other_sees(one in any_snapshot(), other in any_snapshot()) {
            let slowly = (0..20).all(|change| !other.sees(change) || one.sees(change));
            prop_assert_eq!(one.covers(&other), slowly);
            prop_assert_eq!(snapshot(&one.to_string()), one);
        }
    }
}
