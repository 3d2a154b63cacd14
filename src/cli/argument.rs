//! Checks of arguments that clap does not make, and the forms of times.

use anyhow::bail;
use clap::error::ErrorKind;
use time::OffsetDateTime;

use crate::{
    clock,
    config::moment::{self, MomentError},
    credential::Prefix,
};

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
    let start = moment::ago(text, now).map_err(unreadable)?;
    if start.year() < 0 {
        return Err("is too long ago".into());
    }
    if start <= now { Ok(start) } else { Err("is in the future".into()) }
}

fn future_at(text: &str, now: OffsetDateTime) -> Result<OffsetDateTime, String> {
    let end = moment::ahead(text, now).map_err(unreadable)?;
    if end.year() > 9999 {
        return Err("is too far away".into());
    }
    if end > now { Ok(end) } else { Err("is in the past".into()) }
}

fn unreadable(error: MomentError) -> &'static str {
    match error {
        MomentError::Form => moment::FORM,
        MomentError::Distance => "is too long",
    }
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
        assert_eq!(past_at("2026-01-02T04:04:05+02:00", NOW), Ok(datetime!(2026-01-02 02:04:05 UTC)));
        assert_eq!(past_at("24h", NOW), Ok(datetime!(2026-01-01 03:04:05 UTC)));
        assert_eq!(future_at("30d", NOW), Ok(datetime!(2026-02-01 03:04:05 UTC)));
        for bad in ["", "soon", "2026-01-01", "2026-01-03T00:00:00Z", "9000y", "9999999y"] {
            assert!(past_at(bad, NOW).is_err(), "{bad}");
        }
        for bad in ["", "0s", "2025-01-01T00:00:00Z", "10000y", "99999999999999y"] {
            assert!(future_at(bad, NOW).is_err(), "{bad}");
        }
    }
}
