//! What somebody who read the database at one moment could see of the changes made to it. Pure.
//!
//! Changes are known by the number of their transaction. In Postgres these are not committed in the order
//! of their numbers, so a position in the log of changes is no number: it is what `pg_snapshot` is, "all
//! below `xmin`, none from `xmax` on, and none of those in between that were still under way". In SQLite
//! one change follows the other, which is the simple case of it.

use std::{fmt, str::FromStr};

/// The changes that were committed at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Every change below is seen.
    xmin: u64,
    /// No change from here on is seen.
    xmax: u64,
    /// Not seen either; sorted, between the two.
    under_way: Box<[u64]>,
}

/// The text is no `xmin:xmax:xip_list`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a snapshot of the form xmin:xmax:xip_list")]
pub struct NoSnapshot;

impl Snapshot {
    /// Whether this change was committed by then.
    pub fn sees(&self, change: u64) -> bool {
        change < self.xmin || (change < self.xmax && self.under_way.binary_search(&change).is_err())
    }

    /// Whether everything that `other` sees is seen here too: who read at this moment knows of every
    /// change that was known at the other.
    pub fn covers(&self, other: &Self) -> bool {
        let unseen = |change: &u64| !other.sees(*change);
        // Between `self.xmax` and `other.xmax` may lie changes that only the other sees.
        let beyond = (self.xmax..other.xmax).all(|change| other.under_way.binary_search(&change).is_ok());
        beyond && self.under_way.iter().all(unseen)
    }
}

impl FromStr for Snapshot {
    type Err = NoSnapshot;

    fn from_str(text: &str) -> Result<Self, NoSnapshot> {
        let mut parts = text.splitn(3, ':');
        let mut bound = || parts.next().and_then(number).ok_or(NoSnapshot);
        let (xmin, xmax) = (bound()?, bound()?);
        let list = parts.next().ok_or(NoSnapshot)?;
        let under_way = list.split(',').filter(|item| !item.is_empty());
        let under_way: Box<[u64]> =
            under_way.map(|item| number(item).ok_or(NoSnapshot)).collect::<Result<_, _>>()?;
        let within = under_way.iter().all(|change| (xmin..xmax).contains(change));
        match xmin <= xmax && within && under_way.is_sorted() {
            true => Ok(Self { xmin, xmax, under_way }),
            false => Err(NoSnapshot),
        }
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (at, change) in self.under_way.iter().enumerate() {
            write!(f, "{}{change}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// Digits alone: `parse` would take a sign.
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
    fn change_that_was_under_way_is_not_seen_though_later_ones_are() {
        let seen = snapshot("10:20:10,14");
        for (change, expected) in [(9, true), (10, false), (13, true), (14, false), (19, true), (20, false)] {
            assert_eq!(seen.sees(change), expected, "{change}");
        }
    }

    fn any_snapshot() -> impl Strategy<Value = Snapshot> {
        (0u64..12, 0u64..6, proptest::collection::btree_set(0u64..18, 0..4)).prop_map(|(xmin, span, set)| {
            let xmax = xmin + span;
            let under_way = set.into_iter().filter(|change| (xmin..xmax).contains(change)).collect();
            Snapshot { xmin, xmax, under_way }
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
