//! Who is served next, and who makes room. Pure.

use std::{collections::HashMap, hash::Hash};

use ipnet::IpNet;

use super::marks::{Class, Source};
use crate::credential::Prefix;

/// Sites, hosts and prefixes take turns: the one that was served longest ago is next.
#[derive(Debug, Default)]
pub(super) struct Turns {
    served: u64,
    last: HashMap<Unit, u64>,
}

/// What takes turns, within its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Unit {
    Site(Option<IpNet>),
    Host(Option<IpNet>),
    Prefix(Option<IpNet>, Prefix),
}

/// Units that are remembered: more than can wait at the same time.
const UNITS: usize = 4096;

impl Turns {
    /// The position of an attempt: the smallest is next. `arrival` decides between two of the same host and prefix.
    pub(super) fn position(&self, class: Class, source: &Source, arrival: u64) -> impl Ord + Copy + use<> {
        let [site, host, prefix] = units(source).map(|unit| self.last.get(&unit).copied().unwrap_or(0));
        (class, site, host, prefix, arrival)
    }

    /// Notes that this source was served.
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

/// Which of those that wait makes room for another: of the last class, of the site, host and prefix that hold most
/// places, the one that has waited longest.
///
/// The oldest, since an attempt that has just come may be of a good key, which needs no more than one computation's
/// time; what has waited through a flood has mostly had its chance.
pub(super) fn victim<'a>(waiting: impl Iterator<Item = (Class, &'a Source, u64)>) -> Option<u64> {
    let waiting: Vec<_> = waiting.collect();
    let last = waiting.iter().map(|(class, ..)| *class).max()?;
    let mut left: Vec<_> = waiting.into_iter().filter(|(class, ..)| *class == last).collect();
    keep_heaviest(&mut left, |source| source.networks.site());
    keep_heaviest(&mut left, |source| source.networks.narrow());
    keep_heaviest(&mut left, |source| source.prefix);
    left.into_iter().map(|(.., arrival)| arrival).min()
}

/// Keeps those of the unit that has most.
fn keep_heaviest<K: Eq + Hash>(left: &mut Vec<(Class, &Source, u64)>, unit: impl Fn(&Source) -> K) {
    let mut counts: HashMap<K, usize> = HashMap::new();
    for (_, source, _) in left.iter() {
        *counts.entry(unit(source)).or_default() += 1;
    }
    let most = counts.values().copied().max().unwrap_or(0);
    left.retain(|(_, source, _)| counts.get(&unit(source)) == Some(&most));
}
