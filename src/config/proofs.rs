//! Settings of first proofs.

use std::{fmt, str::FromStr, time::Duration};

/// A bcrypt cost, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BcryptCost {
    /// Keystile chooses.
    Auto,
    /// This one.
    Fixed(u32),
}

/// Costs that are accepted of stored hashes as well.
const COSTS: std::ops::RangeInclusive<u32> = 4..=14;

/// The cost where nothing says another.
pub const DEFAULT_COST: u32 = 12;

impl BcryptCost {
    /// The cost of a new hash.
    pub fn of_new_hashes(self) -> u32 {
        match self {
            Self::Auto => DEFAULT_COST,
            Self::Fixed(cost) => cost,
        }
    }
}

impl FromStr for BcryptCost {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(cost)) if COSTS.contains(&cost) => Ok(Self::Fixed(cost)),
            _ => Err("is neither auto nor a cost from 4 to 14"),
        }
    }
}

/// Failures after which a network is throttled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailedAttempts {
    /// So many.
    pub count: u32,
    /// Within this time.
    pub window: Duration,
}

/// The setting `COUNT/TIME`, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailedAttemptsLimit(pub Option<FailedAttempts>);

impl FromStr for FailedAttemptsLimit {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "is neither off nor a number of failures and a time, such as 60/1m";
        if text == "off" {
            return Ok(Self(None));
        }
        let (count, window) = text.split_once('/').ok_or(FORM)?;
        let count = count.parse().ok().filter(|count| *count > 0).ok_or(FORM)?;
        let window = humantime::parse_duration(window).map_err(|_| FORM)?;
        match LONGEST_WINDOW.checked_sub(window) {
            Some(_) if window >= SHORTEST_WINDOW => Ok(Self(Some(FailedAttempts { count, window }))),
            _ => Err("has a time that is not between 1s and 1day"),
        }
    }
}

const SHORTEST_WINDOW: Duration = Duration::from_secs(1);
const LONGEST_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

impl fmt::Display for FailedAttempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, humantime::format_duration(self.window))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_a_count_and_a_time_or_off() {
        let limit = |count, seconds| {
            Ok(FailedAttemptsLimit(Some(FailedAttempts { count, window: Duration::from_secs(seconds) })))
        };
        assert_eq!("60/1m".parse(), limit(60, 60));
        assert_eq!("5/1h".parse(), limit(5, 3600));
        assert_eq!("off".parse(), Ok(FailedAttemptsLimit(None)));
        for bad in ["", "60", "0/1m", "-1/1m", "60/0s", "60/400d", "60/", "/1m", "60/1m/2m", "Off"] {
            assert!(bad.parse::<FailedAttemptsLimit>().is_err(), "{bad}");
        }
    }

    #[test]
    fn cost_is_a_number_or_auto() {
        assert_eq!("auto".parse::<BcryptCost>().map(BcryptCost::of_new_hashes), Ok(12));
        assert_eq!("6".parse::<BcryptCost>().map(BcryptCost::of_new_hashes), Ok(6));
        for bad in ["", "3", "15", "12.0", "AUTO"] {
            assert!(bad.parse::<BcryptCost>().is_err(), "{bad}");
        }
    }
}
