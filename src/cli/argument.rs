//! Checks of arguments that clap does not make, and the forms of times.

use anyhow::bail;
use clap::error::ErrorKind;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{clock, credential::Prefix};

/// Refuses a whole key as an argument: arguments are in the shell's history and in the list of processes. The error
/// does not repeat it.
pub(super) fn refuse_whole_key(argument: &str) -> anyhow::Result<()> {
    if argument.len() > Prefix::LEN && argument.parse::<i64>().is_err() {
        bail!(
            "the argument is longer than a prefix; give the id or the first {} characters of the key \
             (`keystile keys show -` reads a whole key from stdin)",
            Prefix::LEN
        );
    }
    Ok(())
}

/// Ends the process as clap does for wrong usage.
pub(super) fn wrong_usage(text: &str) -> ! {
    clap::Error::raw(ErrorKind::MissingRequiredArgument, format!("{text}\n")).exit()
}

/// A time, or how long ago it was.
pub(super) fn past(text: &str) -> Result<OffsetDateTime, String> {
    past_at(text, clock::wall())
}

/// A time, or how far ahead it is.
pub(super) fn future(text: &str) -> Result<OffsetDateTime, String> {
    future_at(text, clock::wall())
}

fn past_at(text: &str, now: OffsetDateTime) -> Result<OffsetDateTime, String> {
    let start = time_or(text, |duration| now.checked_sub(duration))?;
    if start.year() < 0 {
        return Err("is too long ago".into());
    }
    if start <= now { Ok(start) } else { Err("is in the future".into()) }
}

fn future_at(text: &str, now: OffsetDateTime) -> Result<OffsetDateTime, String> {
    let end = time_or(text, |duration| now.checked_add(duration))?;
    if end.year() > 9999 {
        return Err("is too far away".into());
    }
    if end > now { Ok(end) } else { Err("is in the past".into()) }
}

fn time_or(
    text: &str,
    from_now: impl FnOnce(time::Duration) -> Option<OffsetDateTime>,
) -> Result<OffsetDateTime, String> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time.to_offset(time::UtcOffset::UTC));
    }
    let duration = humantime::parse_duration(text)
        .map_err(|_| "is neither a time such as 2026-12-31T23:59:59Z nor a duration such as 90d")?;
    let time = duration.try_into().ok().and_then(from_now);
    time.ok_or_else(|| "is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

    #[test]
    fn time_is_given_itself_or_by_its_distance() {
        assert_eq!(past_at("1d", NOW), Ok(datetime!(2026-01-01 03:04:05 UTC)));
        assert_eq!(past_at("2025-01-02T04:04:05+01:00", NOW), Ok(datetime!(2025-01-02 03:04:05 UTC)));
        assert_eq!(future_at("30d", NOW), Ok(datetime!(2026-02-01 03:04:05 UTC)));
        for bad in ["", "soon", "2026-01-01", "2027-01-01T00:00:00Z", "9000y"] {
            assert!(past_at(bad, NOW).is_err(), "{bad}");
        }
        for bad in ["", "0s", "2025-01-01T00:00:00Z", "10000y", "99999999999999y"] {
            assert!(future_at(bad, NOW).is_err(), "{bad}");
        }
    }
}
