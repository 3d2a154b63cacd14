//! Counts requests in windows of time, for a bounded number of callers.

use std::{collections::HashMap, hash::Hash, net::IpAddr, time::Instant};

use parking_lot::Mutex;

use crate::config::FailedAttempts;

/// Maximum number of callers that are counted. Above it, those whose window is oldest are forgotten.
const CAPACITY: usize = 16 * 1024;

/// The counts of one kind of attempt.
pub(crate) struct Attempts<K> {
    limit: Option<FailedAttempts>,
    windows: Mutex<HashMap<K, Window>>,
}

struct Window {
    began: Instant,
    count: u32,
}

impl<K: Hash + Eq + Clone> Attempts<K> {
    pub(crate) fn new(limit: Option<FailedAttempts>) -> Self {
        Self { limit, windows: Mutex::default() }
    }

    /// Counts an attempt. Returns the seconds until the next window if it is one too many.
    pub(crate) fn count(&self, key: K, now: Instant) -> Result<(), u64> {
        let Some(FailedAttempts { count: most, window }) = self.limit else { return Ok(()) };
        let mut windows = self.windows.lock();
        if windows.len() >= CAPACITY && !windows.contains_key(&key) {
            make_room(&mut windows);
        }
        let current = windows.entry(key).or_insert(Window { began: now, count: 0 });
        let age = now.saturating_duration_since(current.began);
        if age >= window {
            *current = Window { began: now, count: 0 };
        }
        if current.count >= most {
            return Err(window.saturating_sub(age).as_secs() + 1);
        }
        current.count += 1;
        Ok(())
    }

    /// Whether further attempts are refused: the seconds until the next window.
    pub(crate) fn refusal(&self, key: &K, now: Instant) -> Option<u64> {
        let FailedAttempts { count: most, window } = self.limit?;
        let windows = self.windows.lock();
        let current = windows.get(key).filter(|current| current.count >= most)?;
        let left = window.checked_sub(now.saturating_duration_since(current.began))?;
        Some(left.as_secs() + 1)
    }
}

/// Forgets an eighth of the windows, the oldest.
fn make_room<K: Hash + Eq>(windows: &mut HashMap<K, Window>) {
    let mut ages: Vec<_> = windows.values().map(|window| window.began).collect();
    let (_, oldest, _) = ages.select_nth_unstable(CAPACITY / 8);
    let oldest = *oldest;
    windows.retain(|_, window| window.began > oldest);
}

/// The network of an address: an address in IPv4, a /64 in IPv6.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => (address.to_bits() >> 64 << 64).to_be_bytes().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn attempts() -> Attempts<u32> {
        Attempts::new(Some(FailedAttempts { count: 2, window: Duration::from_secs(60) }))
    }

    #[test]
    fn attempts_above_the_limit_are_refused_until_the_next_window() {
        let (attempts, now) = (attempts(), Instant::now());
        assert_eq!([attempts.count(1, now), attempts.count(1, now)], [Ok(()), Ok(())]);
        assert_eq!(attempts.refusal(&1, now), Some(61));
        assert_eq!(attempts.count(1, now + Duration::from_secs(59)), Err(2));
        assert_eq!((attempts.count(2, now), attempts.refusal(&2, now)), (Ok(()), None));
        let later = now + Duration::from_secs(61);
        assert_eq!((attempts.refusal(&1, later), attempts.count(1, later)), (None, Ok(())));
    }

    #[test]
    fn number_of_callers_is_bounded_and_the_newest_are_kept() {
        let (attempts, now) = (attempts(), Instant::now());
        for key in 0..100_000 {
            let _ = attempts.count(key, now + Duration::from_millis(key.into()));
        }
        let windows = attempts.windows.lock();
        assert!(windows.len() <= CAPACITY && windows.contains_key(&99_999));
    }

    #[test]
    fn network_of_an_address() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(network(address("::ffff:10.0.0.1")), address("10.0.0.1"));
        assert_eq!(network(address("2001:db8:1:2:3:4:5:6")), address("2001:db8:1:2::"));
    }
}
