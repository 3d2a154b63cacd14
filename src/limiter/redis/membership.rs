//! The instances that share the limits: how many there are, and the position of this one.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// An instance is gone after this time without a heartbeat.
pub(super) const SILENCE: Duration = Duration::from_secs(10);

/// The instances that share a limit, and this one's position among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fleet {
    pub(super) count: u64,
    pub(super) position: u64,
}

/// The fleet, as the last heartbeat found it.
#[derive(Default)]
pub(super) struct Membership {
    /// 0 before the first heartbeat.
    count: AtomicU64,
    position: AtomicU64,
}

impl Fleet {
    /// This instance's part of a whole. All parts together are the whole.
    pub(super) fn part(self, whole: u64) -> u64 {
        whole / self.count + u64::from(self.position < whole % self.count)
    }
}

impl Membership {
    pub(super) fn set(&self, fleet: Fleet) {
        self.position.store(fleet.position, Ordering::Relaxed);
        self.count.store(fleet.count, Ordering::Release);
    }

    pub(super) fn fleet(&self) -> Option<Fleet> {
        let count = self.count.load(Ordering::Acquire);
        (count > 0).then(|| Fleet { count, position: self.position.load(Ordering::Relaxed) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_together_are_the_whole() {
        for count in 1..8 {
            for whole in 0..30 {
                let parts = (0..count).map(|position| Fleet { count, position }.part(whole));
                assert_eq!(parts.sum::<u64>(), whole);
            }
        }
    }
}
