//! What a sidecar asks Redis about one key, and what Redis answers. Pure.

use std::time::Duration;

use crate::{
    limits::{Bill, Counted, PerSpan, Span, Standing},
    record::KeyId,
};

/// What Redis is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::limiter) struct Order {
    pub(in crate::limiter) key: KeyId,
    pub(in crate::limiter) need: u64,
    pub(in crate::limiter) want: u64,
    /// Of what is left above the need, one such part may be taken ahead.
    pub(in crate::limiter) part: u64,
    pub(in crate::limiter) windows: PerSpan<Option<Line>>,
}

/// What Redis is asked and told of one window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::limiter) struct Line {
    pub(in crate::limiter) limit: u64,
    pub(in crate::limiter) number: u64,
    pub(in crate::limiter) mine: u64,
    pub(in crate::limiter) back: u64,
    /// Of `mine`, what Redis is told for the first time.
    pub(in crate::limiter) debt: u64,
}

/// What Redis answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::limiter) struct Reply {
    /// Its clock, since 1970.
    pub(in crate::limiter) now: Duration,
    /// What was charged.
    pub(in crate::limiter) grant: u64,
    pub(in crate::limiter) windows: PerSpan<Option<Told>>,
}

/// What Redis says of one window, after the charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::limiter) struct Told {
    pub(in crate::limiter) number: u64,
    pub(in crate::limiter) used: u64,
    pub(in crate::limiter) mine: u64,
}

/// The sidecars that share a limit, and this one's place among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::limiter) struct Fleet {
    pub(in crate::limiter) count: u64,
    pub(in crate::limiter) place: u64,
}

impl Reply {
    /// What is told of it.
    pub(in crate::limiter) fn standing(&self, bill: &Bill) -> Standing {
        bill.standing(Counted::Redis, |span, limit| (self.remaining(span, limit), self.window_ends_in(span)))
    }

    /// When the first of the windows ends.
    pub(in crate::limiter) fn ends_in(&self, bill: &Bill) -> Duration {
        bill.limited().map(|(span, _)| self.window_ends_in(span)).min().unwrap_or_default()
    }

    fn window_ends_in(&self, span: Span) -> Duration {
        self.windows[span as usize].map_or(Duration::ZERO, |told| span.ends_in(told.number, self.now))
    }

    pub(in crate::limiter) fn remaining(&self, span: Span, limit: u64) -> u64 {
        limit.saturating_sub(self.windows[span as usize].map_or(0, |told| told.used))
    }
}

impl Fleet {
    /// This sidecar's part of a whole. All parts together are the whole.
    pub(in crate::limiter) fn part(self, whole: u64) -> u64 {
        whole / self.count + u64::from(self.place < whole % self.count)
    }
}
