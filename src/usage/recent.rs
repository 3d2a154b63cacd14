//! A bounded memory of recent ids.

use std::collections::HashSet;

/// Remembers recent ids, at least those of the last full generation.
#[derive(Debug, Default)]
pub(super) struct RecentIds {
    young: HashSet<u64>,
    old: HashSet<u64>,
}

/// Number of ids in a generation. Envoy repeats a check within its deadline, a few seconds. All parts together hold
/// some 65,000 requests in that time.
const GENERATION: usize = 4096;

impl RecentIds {
    /// Whether this id is new. It is remembered from now on.
    pub(super) fn is_first(&mut self, id: u64) -> bool {
        if self.old.contains(&id) || !self.young.insert(id) {
            return false;
        }
        if self.young.len() >= GENERATION {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_generation_is_known_and_room_is_bounded() {
        let mut recent = RecentIds::default();
        for id in 0..10 * GENERATION as u64 {
            assert!(recent.is_first(id));
            let earliest = id.saturating_sub(GENERATION as u64 - 1);
            assert!(!recent.is_first(earliest), "{earliest} after {id}");
            assert!(recent.young.len() + recent.old.len() <= 2 * GENERATION);
        }
    }
}
