//! Windows of time, and what is left in them of a key's limits. Pure.
//!
//! Windows are those of the clock: each minute, hour and day of UTC starts a new one, for every key
//! alike. So a limit has one exact meaning however many count it, and callers know when it ends.

use std::{num::NonZeroU32, time::Duration};

use crate::record::{KeyId, Limits};

/// How long a window is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Span {
    /// 60 seconds.
    Minute,
    /// 60 minutes.
    Hour,
    /// 24 hours.
    Day,
}

/// Something for each span, in the order of [`Span::ALL`].
pub type PerSpan<T> = [T; 3];

/// A request for which a key's limits are to be charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bill {
    /// Whose.
    pub key: KeyId,
    /// What the key may use in each window.
    pub limits: Limits,
    /// What the request counts.
    pub cost: NonZeroU32,
}

/// What is left of a key's limits: told to callers and upstreams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// By span; `None` where there is no limit.
    pub windows: PerSpan<Option<Left>>,
    /// Who counts.
    pub counted: Counted,
}

/// What is left in one window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// The limit.
    pub limit: u64,
    /// What may still be used.
    pub remaining: u64,
    /// Until the window ends and the limit is there anew.
    pub reset: Duration,
}

/// Who counts, and so for whom the numbers hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// This process, for itself.
    Local,
    /// Redis, for every sidecar.
    Redis,
    /// This process, for its part of the limit, since Redis does not answer.
    Divided,
}

impl Span {
    /// From the shortest.
    pub const ALL: PerSpan<Self> = [Self::Minute, Self::Hour, Self::Day];

    /// The name in headers, metadata and keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    /// Its length.
    pub fn seconds(self) -> u64 {
        match self {
            Self::Minute => 60,
            Self::Hour => 60 * 60,
            Self::Day => 24 * 60 * 60,
        }
    }

    /// Which window it is at a time since 1970.
    pub fn number(self, since_epoch: Duration) -> u64 {
        since_epoch.as_secs() / self.seconds()
    }

    /// How long a window still lasts, at a time since 1970.
    pub fn ends_in(self, number: u64, since_epoch: Duration) -> Duration {
        let end = Duration::from_secs((number + 1) * self.seconds());
        end.saturating_sub(since_epoch)
    }
}

impl Limits {
    /// By span.
    pub fn per_span(&self) -> PerSpan<Option<u64>> {
        [self.minute, self.hour, self.day]
    }

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Bill {
    /// What the request counts.
    pub fn cost(&self) -> u64 {
        self.cost.get().into()
    }

    /// Whether no window can ever hold it: a limit of 0, or one below the cost.
    pub fn is_hopeless(&self) -> bool {
        self.limits.per_span().into_iter().flatten().any(|limit| limit < self.cost())
    }

    /// Each span that has a limit.
    pub fn limited(&self) -> impl Iterator<Item = (Span, u64)> + Clone {
        Span::ALL.into_iter().zip(self.limits.per_span()).filter_map(|(span, limit)| Some((span, limit?)))
    }

    /// What is told, when each window with a limit has so much remaining and so long to go.
    pub fn standing(&self, counted: Counted, left: impl Fn(Span, u64) -> (u64, Duration)) -> Standing {
        let limits = self.limits.per_span();
        let windows = Span::ALL.map(|span| {
            let limit = limits[span as usize]?;
            let (remaining, reset) = left(span, limit);
            Some(Left { limit, remaining, reset })
        });
        Standing { windows, counted }
    }
}

impl Standing {
    /// Each window with a limit.
    pub fn each(&self) -> impl Iterator<Item = (Span, Left)> {
        Span::ALL.into_iter().zip(self.windows).filter_map(|(span, left)| Some((span, left?)))
    }

    /// When a request of this cost may pass, others' requests apart.
    pub fn retry_after(&self, cost: u64) -> Duration {
        let full = self.each().filter(|(_, left)| left.remaining < cost);
        full.map(|(_, left)| left.reset).max().unwrap_or_default()
    }
}

impl Left {
    /// Whole seconds until the window has ended: never too early.
    pub fn reset_seconds(&self) -> u64 {
        whole_seconds(self.reset)
    }
}

impl Counted {
    /// The name in metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Redis => "redis",
            Self::Divided => "divided",
        }
    }
}

/// Whole seconds that last at least so long, and at least one.
pub fn whole_seconds(duration: Duration) -> u64 {
    let part = u64::from(duration.subsec_nanos() > 0);
    (duration.as_secs() + part).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bill(minute: u64, day: u64, cost: u32) -> Bill {
        let limits = Limits { minute: Some(minute), hour: None, day: Some(day) };
        Bill { key: KeyId(7), limits, cost: NonZeroU32::new(cost).expect("not 0") }
    }

    #[test]
    fn what_can_never_pass_is_known() {
        assert!(bill(0, 10, 1).is_hopeless());
        assert!(bill(10, 4, 5).is_hopeless());
        assert!(!bill(5, 5, 5).is_hopeless());
    }

    #[test]
    fn caller_is_sent_away_until_the_last_full_window_ends() {
        let now = Duration::new(86_400 + 30, 500_000_000);
        let left = |minute, day| {
            let remaining = move |span| if span == Span::Minute { minute } else { day };
            let reset = |span: Span| span.ends_in(span.number(now), now);
            bill(10, 100, 5).standing(Counted::Local, |span, _| (remaining(span), reset(span)))
        };
        assert_eq!(left(4, 50).retry_after(5), Duration::from_millis(29_500));
        assert_eq!(left(9, 2).retry_after(5), Duration::from_millis(86_369_500));
        assert_eq!(left(9, 50).retry_after(5), Duration::ZERO);
        let told = left(4, 50).windows[0].expect("limited");
        assert_eq!(told.reset_seconds(), 30);
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
