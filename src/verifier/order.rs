//! The order in which waiting attempts are served, and which attempt is rejected when the queue is full. Pure.

use std::{collections::HashMap, hash::Hash};

use ipnet::IpNet;

use super::marks::{Class, Source};
use crate::credential::Prefix;

/// Rotation of sites, hosts and prefixes. The one that has not been served for the longest time is next.
#[derive(Debug, Default)]
pub(super) struct Turns {
    served: u64,
    last: HashMap<Unit, u64>,
}

/// A unit of the rotation within a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Unit {
    Site(Option<IpNet>),
    Host(Option<IpNet>),
    Prefix(Option<IpNet>, Prefix),
}

/// Number of units that are kept. It is larger than the number of units that can wait at the same time.
const UNITS: usize = 4096;

impl Turns {
    /// The position of an attempt. The smallest is next. `arrival` orders attempts of the same host and prefix.
    pub(super) fn position(&self, class: Class, source: &Source, arrival: u64) -> impl Ord + Copy + use<> {
        let [site, host, prefix] = units(source).map(|unit| self.last.get(&unit).copied().unwrap_or(0));
        (class, site, host, prefix, arrival)
    }

    /// Records that this source was served.
    pub(super) fn serve(&mut self, source: &Source) {
        self.served += 1;
        if self.last.len() > UNITS {
            let oldest = self.served.saturating_sub(UNITS as u64 / 8);
            self.last.retain(|_, served| *served > oldest);
        }
        for unit in units(source) {
            self.last.insert(unit, self.served);
        }
    }
}

fn units(source: &Source) -> [Unit; 3] {
    let host = source.networks.narrow();
    [Unit::Site(source.networks.site()), Unit::Host(host), Unit::Prefix(host, source.prefix)]
}

/// Selects the waiting attempt to reject when the queue is full. It takes the last class, then the site, the host and
/// the prefix with the most waiting attempts, then the oldest attempt.
///
/// The oldest is rejected because a new attempt may have a good key, which needs only the time of one computation. An
/// attempt that has waited through a flood usually had enough time to be proven.
pub(super) fn victim<'a>(waiting: impl Iterator<Item = (Class, &'a Source, u64)>) -> Option<u64> {
    let waiting: Vec<_> = waiting.collect();
    let last = waiting.iter().map(|(class, ..)| *class).max()?;
    let mut left: Vec<_> = waiting.into_iter().filter(|(class, ..)| *class == last).collect();
    keep_heaviest(&mut left, |source| source.networks.site());
    keep_heaviest(&mut left, |source| source.networks.narrow());
    keep_heaviest(&mut left, |source| source.prefix);
    left.into_iter().map(|(.., arrival)| arrival).min()
}

/// Keeps the attempts of the unit with the most attempts.
fn keep_heaviest<K: Eq + Hash>(left: &mut Vec<(Class, &Source, u64)>, unit: impl Fn(&Source) -> K) {
    let mut counts: HashMap<K, usize> = HashMap::new();
    for (_, source, _) in left.iter() {
        *counts.entry(unit(source)).or_default() += 1;
    }
    let most = counts.values().copied().max().unwrap_or(0);
    left.retain(|(_, source, _)| counts.get(&unit(source)) == Some(&most));
}
