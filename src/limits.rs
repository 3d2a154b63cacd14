//! Time windows, and the amount of a key's limits that remains in them. Pure.
//!
//! Windows follow the clock: each minute, hour and day of UTC starts a new window for every key. So a limit has one
//! exact meaning on every instance, and callers know when a window ends.

use std::{num::NonZeroU32, time::Duration};

use crate::record::{KeyId, Limits};

/// The length of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Span {
    /// 60 seconds.
    Minute,
    /// 60 minutes.
    Hour,
    /// 24 hours.
    Day,
}

/// One value for each span, in the order of [`Span::ALL`].
pub type PerSpan<T> = [T; 3];

/// A request that counts against a key's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charge {
    /// The key that requests are counted under: the first of its chain.
    pub key: KeyId,
    /// The key's limit in each window.
    pub limits: Limits,
    /// How much the request counts.
    pub cost: NonZeroU32,
}

/// The state of a key's limits, as callers and upstreams see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitStatus {
    /// By span; `None` where there is no limit.
    pub windows: PerSpan<Option<WindowStatus>>,
    /// Which requests are counted.
    pub counted: LimitScope,
}

/// The state of one window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowStatus {
    /// The limit.
    pub limit: u64,
    /// How much of the limit remains.
    pub remaining: u64,
    /// Time until the window ends and the whole limit is available again.
    pub reset: Duration,
}

/// The requests that a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitScope {
    /// Requests to this instance.
    Local,
    /// Requests to every instance, counted by Redis.
    Redis,
    /// Requests to this instance, against its part of the limit, while Redis does not respond.
    Divided,
}

impl Span {
    /// All spans, the shortest first.
    pub const ALL: PerSpan<Self> = [Self::Minute, Self::Hour, Self::Day];

    /// The name in headers, metadata and keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    /// The length in seconds.
    pub fn seconds(self) -> u64 {
        match self {
            Self::Minute => 60,
            Self::Hour => 60 * 60,
            Self::Day => 24 * 60 * 60,
        }
    }

    /// The number of the window at a time since 1970.
    pub fn number(self, since_epoch: Duration) -> u64 {
        since_epoch.as_secs() / self.seconds()
    }

    /// Time until a window ends, from a time since 1970.
    pub fn ends_in(self, number: u64, since_epoch: Duration) -> Duration {
        let end = Duration::from_secs((number + 1) * self.seconds());
        end.saturating_sub(since_epoch)
    }
}

impl Limits {
    /// The limit of each span.
    pub fn per_span(&self) -> PerSpan<Option<u64>> {
        [self.minute, self.hour, self.day]
    }

    /// Whether there is no limit.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Charge {
    /// How much the request counts.
    pub fn cost(&self) -> u64 {
        self.cost.get().into()
    }

    /// Whether a limit is below the cost, so that the request can never pass.
    pub fn exceeds_a_limit(&self) -> bool {
        self.limits.per_span().into_iter().flatten().any(|limit| limit < self.cost())
    }

    /// Each span that has a limit.
    pub fn limited(&self) -> impl Iterator<Item = (Span, u64)> + Clone {
        Span::ALL.into_iter().zip(self.limits.per_span()).filter_map(|(span, limit)| Some((span, limit?)))
    }

    /// The status. For each span with a limit, `window` returns the remaining amount and the time until the window
    /// ends.
    pub fn status(&self, counted: LimitScope, window: impl Fn(Span, u64) -> (u64, Duration)) -> LimitStatus {
        let limits = self.limits.per_span();
        let windows = Span::ALL.map(|span| {
            let limit = limits[span as usize]?;
            let (remaining, reset) = window(span, limit);
            Some(WindowStatus { limit, remaining, reset })
        });
        LimitStatus { windows, counted }
    }
}

impl LimitStatus {
    /// Each window with a limit.
    pub fn each(&self) -> impl Iterator<Item = (Span, WindowStatus)> {
        Span::ALL.into_iter().zip(self.windows).filter_map(|(span, window)| Some((span, window?)))
    }

    /// Time until a request of this cost may pass, if no other request comes before.
    pub fn retry_after(&self, cost: u64) -> Duration {
        let full = self.each().filter(|(_, window)| window.remaining < cost);
        full.map(|(_, window)| window.reset).max().unwrap_or_default()
    }
}

impl WindowStatus {
    /// Whole seconds until the window ends, rounded up.
    pub fn reset_seconds(&self) -> u64 {
        whole_seconds(self.reset)
    }
}

impl LimitScope {
    /// The name in metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Redis => "redis",
            Self::Divided => "divided",
        }
    }
}

/// A duration in whole seconds, rounded up to at least one.
pub fn whole_seconds(duration: Duration) -> u64 {
    let part = u64::from(duration.subsec_nanos() > 0);
    (duration.as_secs() + part).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn charge(minute: u64, day: u64, cost: u32) -> Charge {
        let limits = Limits { minute: Some(minute), hour: None, day: Some(day) };
        Charge { key: KeyId(7), limits, cost: NonZeroU32::new(cost).expect("not 0") }
    }

    #[test]
    fn charge_above_a_limit_can_never_pass() {
        assert!(charge(0, 10, 1).exceeds_a_limit());
        assert!(charge(10, 4, 5).exceeds_a_limit());
        assert!(!charge(5, 5, 5).exceeds_a_limit());
    }

    #[test]
    fn retry_is_after_the_last_full_window_ends() {
        let now = Duration::new(86_400 + 30, 500_000_000);
        let left = |minute, day| {
            let remaining = move |span| if span == Span::Minute { minute } else { day };
            let reset = |span: Span| span.ends_in(span.number(now), now);
            charge(10, 100, 5).status(LimitScope::Local, |span, _| (remaining(span), reset(span)))
        };
        assert_eq!(left(4, 50).retry_after(5), Duration::from_millis(29_500));
        assert_eq!(left(9, 2).retry_after(5), Duration::from_millis(86_369_500));
        assert_eq!(left(9, 50).retry_after(5), Duration::ZERO);
        let minute = left(4, 50).windows[0].expect("limited");
        assert_eq!(minute.reset_seconds(), 30);
        assert_eq!(whole_seconds(Duration::ZERO), 1);
    }

    proptest! {
        #[test]
        fn windows_follow_one_another_without_gap(seconds in 0..1u64 << 34, nanos in 0..1_000_000_000u32) {
            let now = Duration::new(seconds, nanos);
            for span in Span::ALL {
                let number = span.number(now);
                let left = span.ends_in(number, now);
                prop_assert!(!left.is_zero() && left <= Duration::from_secs(span.seconds()));
                prop_assert_eq!(span.number(now + left), number + 1);
                prop_assert_eq!(span.number(now + left - Duration::from_nanos(1)), number);
            }
        }
    }
}
