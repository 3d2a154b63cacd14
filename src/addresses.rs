//! The addresses of a host name, and the order in which they are tried.
//!
//! Names are resolved for every new connection, because a failover changes the address of a name.

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    io,
    net::SocketAddr,
    pin::Pin,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Finds the addresses of a host.
pub trait Resolver: Send + Sync {
    /// All addresses of `host`, each with `port`. If `host` is an IP address, the result is that address.
    fn addresses<'a>(&'a self, host: &'a str, port: u16) -> Addresses<'a>;
}

/// A resolution in progress.
pub type Addresses<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>>;

/// The operating system's resolver: `/etc/hosts`, then DNS.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

/// Recent failures. Items that failed recently are tried last.
#[derive(Debug)]
pub(crate) struct Failures<T>(Mutex<HashMap<T, Instant>>);

/// How long a failure is kept. After that, one connection tries the item again, and is delayed if it still fails.
const REMEMBERED: Duration = Duration::from_secs(60);

impl Resolver for SystemResolver {
    fn addresses<'a>(&'a self, host: &'a str, port: u16) -> Addresses<'a> {
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
            if found.is_empty() { Err(io::Error::other("the name has no address")) } else { Ok(found) }
        })
    }
}

impl<T> Default for Failures<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone + Eq + Hash> Failures<T> {
    /// Sorts `items` into the order in which they are tried. Items without a recent failure come first, in the given
    /// order. Then come the other items, the oldest failure first.
    pub(crate) fn sort_by_key<I>(&self, items: &mut [I], now: Instant, key: impl Fn(&I) -> T) {
        let failures = self.0.lock();
        items.sort_by_key(|item| failures.get(&key(item)).copied().filter(|at| is_remembered(*at, now)));
    }

    /// Whether `item` failed recently.
    pub(crate) fn contains(&self, item: &T, now: Instant) -> bool {
        self.0.lock().get(item).is_some_and(|at| is_remembered(*at, now))
    }

    /// Adds a failure. Removes all failures older than [`REMEMBERED`], so that names with changing addresses do not
    /// fill the memory.
    pub(crate) fn add(&self, item: T, now: Instant) {
        let mut failures = self.0.lock();
        failures.retain(|_, at| is_remembered(*at, now));
        failures.insert(item, now);
    }

    /// Removes a failure, because the item works again.
    pub(crate) fn remove(&self, item: &T) {
        self.0.lock().remove(item);
    }
}

fn is_remembered(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < REMEMBERED
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(failures: &Failures<char>, now: Instant) -> String {
        let mut items = ['a', 'b', 'c'];
        failures.sort_by_key(&mut items, now, |item| *item);
        items.iter().collect()
    }

    #[test]
    fn what_failed_lately_is_tried_last_and_the_longest_ago_first() {
        let (failures, start) = (Failures::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(order(&failures, start), "abc");
        failures.add('a', start);
        assert_eq!(order(&failures, after(1)), "bca");
        failures.add('b', after(1));
        failures.add('c', after(2));
        assert_eq!(order(&failures, after(3)), "abc");
        failures.remove(&'b');
        assert_eq!(order(&failures, after(3)), "bac");
    }

    #[test]
    fn failure_is_forgotten_after_a_while() {
        let (failures, start) = (Failures::default(), Instant::now());
        failures.add('a', start);
        assert!(failures.contains(&'a', start + REMEMBERED / 2));
        assert!(!failures.contains(&'a', start + REMEMBERED));
        assert_eq!(order(&failures, start + REMEMBERED), "abc");
    }
}
