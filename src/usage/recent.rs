//! Ids that were met lately, in bounded room.

use std::collections::HashSet;

/// Remembers the last ids that it was shown: half of its room of them at the least.
#[derive(Debug, Default)]
pub(super) struct Recent {
    young: HashSet<u64>,
    old: HashSet<u64>,
}

/// How many ids a generation has. Envoy asks again within its deadline for the check, a few seconds:
/// with all parts, room for some 65,000 requests in that time.
const GENERATION: usize = 4096;

impl Recent {
    /// Whether this id is new here; from now on it is not.
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
        let mut recent = Recent::default();
        for id in 0..10 * GENERATION as u64 {
            assert!(recent.is_first(id));
            let earliest = id.saturating_sub(GENERATION as u64 - 1);
            assert!(!recent.is_first(earliest), "{earliest} after {id}");
            assert!(recent.young.len() + recent.old.len() <= 2 * GENERATION);
        }
    }
}
