//! Decodes and writes times, in every form in which databases return them.

use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};

use super::value::Expectation;
use crate::record::Expiry;

/// An expiry: a time, `infinity` or `-infinity`. A time after the year 9999 never comes, and one before Christ is past.
///
/// # Errors
/// What a time looks like, if the text is none.
pub fn expiry(text: &str) -> Result<Expiry, Expectation> {
    match text {
        _ if text.eq_ignore_ascii_case("infinity") => Ok(Expiry::Never),
        _ if text.eq_ignore_ascii_case("-infinity") => Ok(Expiry::Always),
        _ => parse_time(text).ok_or(EXPECTATION),
    }
}

/// ISO 8601 with a space or a `T`, an optional fraction and an optional offset, by default UTC. A date alone is its
/// midnight.
///
/// # Errors
/// What a time looks like, if the text is none.
pub fn timestamp(text: &str) -> Result<OffsetDateTime, Expectation> {
    match parse_time(text) {
        Some(Expiry::At(time)) => Ok(time),
        _ => Err(EXPECTATION),
    }
}

const EXPECTATION: Expectation = "a timestamp, such as 2026-12-31T23:59:59Z";

/// The form that [`timestamp`] reads and both databases sort by time: in UTC, without an offset.
pub fn write_timestamp(time: OffsetDateTime) -> String {
    const FORM: &[time::format_description::BorrowedFormatItem<'_>] = time::macros::format_description!(
        "[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:6]"
    );
    let Ok(text) = time.to_offset(UtcOffset::UTC).format(FORM) else {
        unreachable!("every part of the form exists in a date and time")
    };
    text
}

/// A time of the years 0 to 9999 is itself, any other is [`Expiry::Never`] or [`Expiry::Always`].
fn parse_time(text: &str) -> Option<Expiry> {
    let (text, is_before_christ) = match text.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let (year, rest) = text.split_at_checked(text.find('-')?)?;
    if !(4..=6).contains(&year.len()) || (year.len() > 4 && year.starts_with('0')) {
        return None;
    }
    let year = i32::try_from(digits(year)?).ok()?;
    let is_far = year > 9999;
    // A year of the same length within the range of the calendar. 1 BC was the year before 1.
    let year = match (is_before_christ, is_far) {
        (true, _) => 2000 + (1 - year).rem_euclid(400),
        (false, true) => 2000 + year % 400,
        (false, false) => year,
    };
    let (date, rest) = rest.split_at_checked(6)?;
    let month = Month::try_from(u8::try_from(two_digits(date, 1)?).ok()?).ok()?;
    let is_date = date.as_bytes()[0] == b'-' && date.as_bytes()[3] == b'-';
    let date = Date::from_calendar_date(year, month, two_digits(date, 4)?.try_into().ok()?).ok()?;
    let (time, offset) = if rest.is_empty() { (Time::MIDNIGHT, UtcOffset::UTC) } else { parse_clock(rest)? };
    if !is_date {
        return None;
    }
    Some(match PrimitiveDateTime::new(date, time).assume_offset(offset).checked_to_offset(UtcOffset::UTC) {
        _ if is_before_christ => Expiry::Always,
        _ if is_far => Expiry::Never,
        Some(time) => Expiry::At(time),
        // Its offset takes it into the year 10000.
        None => Expiry::Never,
    })
}

/// ` 03:04:05.25+01` or `T03:04:05Z`.
fn parse_clock(text: &str) -> Option<(Time, UtcOffset)> {
    let (clock, rest) = text.split_at_checked(9)?;
    let marks = clock.as_bytes();
    if !matches!(marks[0], b' ' | b'T' | b't') || marks[3] != b':' || marks[6] != b':' {
        return None;
    }
    let (nanosecond, rest) = fraction(rest)?;
    let [hour, minute, second] = [two_digits(clock, 1)?, two_digits(clock, 4)?, two_digits(clock, 7)?];
    let time = Time::from_hms_nano(
        hour.try_into().ok()?,
        minute.try_into().ok()?,
        second.try_into().ok()?,
        nanosecond,
    );
    Some((time.ok()?, offset(rest)?))
}

/// The two digits at this position.
fn two_digits(text: &str, at: usize) -> Option<u32> {
    digits(text.get(at..at + 2)?)
}

/// Only digits: `parse` alone accepts a sign.
fn digits(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Nanoseconds of `.123456`, and what follows it.
fn fraction(text: &str) -> Option<(u32, &str)> {
    let Some(text) = text.strip_prefix('.') else { return Some((0, text)) };
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if !(1..=9).contains(&end) {
        return None;
    }
    let (digits, rest) = text.split_at_checked(end)?;
    Some((format!("{digits:0<9}").parse().ok()?, rest))
}

/// Nothing, `Z`, `+02`, `+0200`, `+02:00` or `+02:00:00`.
fn offset(text: &str) -> Option<UtcOffset> {
    if text.is_empty() || text.eq_ignore_ascii_case("z") {
        return Some(UtcOffset::UTC);
    }
    let (sign, parts) = match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(parts), _) => (1, parts),
        (_, Some(parts)) => (-1, parts),
        (None, None) => return None,
    };
    let parts = parts.replace(':', "");
    if !matches!(parts.len(), 2 | 4 | 6) || !parts.is_ascii() {
        return None;
    }
    let part = |at: usize| {
        let number = digits(parts.get(at..at + 2).unwrap_or("00"))?;
        i8::try_from(number).ok().map(|number| sign * number)
    };
    UtcOffset::from_hms(part(0)?, part(2)?, part(4)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn timestamps_are_read_in_every_form_that_databases_write() {
        let whole = datetime!(2026-01-02 03:04:05 UTC);
        let micro = datetime!(2026-01-02 03:04:05.000_120 UTC);
        for (text, expected) in [
            ("2026-01-02 03:04:05", Ok(whole)),
            ("2026-01-02T03:04:05", Ok(whole)),
            ("2026-01-02T03:04:05Z", Ok(whole)),
            ("2026-01-02 05:04:05+02", Ok(whole)),
            ("2026-01-02 05:34:05+0230", Ok(whole)),
            ("2026-01-01T22:04:05-05:00", Ok(whole)),
            ("2026-01-02 03:24:17+00:20:12", Ok(whole)),
            ("2026-01-02 03:04:05.00012", Ok(micro)),
            ("2026-01-02T03:04:05.000120+00:00", Ok(micro)),
            ("2026-01-02", Ok(datetime!(2026-01-02 00:00 UTC))),
            ("0001-01-01 00:00:00", Ok(datetime!(0001-01-01 00:00 UTC))),
        ] {
            assert_eq!(timestamp(text), expected, "{text}");
        }
        for bad in [
            "",
            "soon",
            "2026-01-02 ",
            "2026-01-2",
            "2026-1-02",
            "2026/01/02",
            "02026-01-02",
            "2026-02-29",
            "2026-01-02 03:04",
            "2026-13-02 03:04:05",
            "2026-02-30 03:04:05",
            "2026-01-02 25:04:05",
            "2026-01-02 03:04:05.",
            "2026-01-02 03:04:05+",
            "2026-01-02 03:04:05+26:00",
            "2026-01-02 03:04:05 BC",
            "10000-01-02 03:04:05",
            "+026-01-02 03:04:05",
            "9999-12-31T23:59:59-01:00",
            "2026-01-02\u{e9}03:04:05",
            "1767323045",
            "2026-01-02 03:04:05+\u{e9}1",
            "2026-01-02 03:04:05+1\u{e9}1",
        ] {
            assert!(timestamp(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn written_timestamps_read_back_and_sort_by_time() {
        let times = [datetime!(2026-01-02 03:04:05.1 UTC), datetime!(2026-01-02 04:04:05.25 +1)];
        let written = times.map(write_timestamp);
        assert_eq!(written, ["2026-01-02 03:04:05.100000", "2026-01-02 03:04:05.250000"]);
        assert_eq!(written.each_ref().map(|text| timestamp(text)), times.map(Ok));
    }

    #[test]
    fn infinity_never_expires_and_its_negative_always_has() {
        assert_eq!(expiry("infinity"), Ok(Expiry::Never));
        assert_eq!(expiry("-infinity"), Ok(Expiry::Always));
        assert_eq!(expiry("2026-01-02 03:04:05"), Ok(Expiry::At(datetime!(2026-01-02 03:04:05 UTC))));
        for bad in
            ["never", "", "BC", " BC", "infinity BC", "10000", "10000-13-01", "10001-02-29", "1234567-01-01"]
        {
            assert!(expiry(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn far_future_never_comes_and_what_was_before_christ_is_past() {
        for far in [
            "10000-01-01T08:59:59+09:00",
            "9999-12-31T23:59:59-01:00",
            "294276-12-31T23:59:59.999999",
            "12000-02-29",
        ] {
            assert_eq!(expiry(far), Ok(Expiry::Never), "{far}");
            assert!(timestamp(far).is_err(), "{far}");
        }
        for past in ["0044-03-15T00:00:00 BC", "4713-01-01 BC", "0001-02-29T00:00:00 BC"] {
            assert_eq!(expiry(past), Ok(Expiry::Always), "{past}");
        }
        let last = datetime!(9999-12-31 23:59:59 UTC);
        assert_eq!(expiry("9999-12-31T23:59:59"), Ok(Expiry::At(last)));
    }
}
