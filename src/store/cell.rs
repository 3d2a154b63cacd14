//! What a database's cells mean: every value arrives as text, and is read here.

use std::{fmt::Display, str::FromStr};

use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};

use crate::record::{AllowList, Expiry};

/// One value as a database hands it over; `None` is NULL.
pub type Cell = Option<String>;

/// Says what a value should have been, never what it was: a cell may hold a secret.
pub(crate) type Expected = &'static str;

/// `true` and `t` from Postgres, `1` from SQLite and from columns of numbers.
pub(crate) fn boolean(text: &str) -> Result<bool, Expected> {
    match integer(text) {
        Ok(1) => Ok(true),
        Ok(0) => Ok(false),
        _ if text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("t") => Ok(true),
        _ if text.eq_ignore_ascii_case("false") || text.eq_ignore_ascii_case("f") => Ok(false),
        _ => Err("true or false"),
    }
}

/// A whole number; a fraction of zeros is one too, since a `numeric` column may print it.
pub(crate) fn integer(text: &str) -> Result<i64, Expected> {
    let whole = match text.split_once('.') {
        Some((whole, zeros)) if !zeros.is_empty() && zeros.bytes().all(|digit| digit == b'0') => whole,
        _ => text,
    };
    whole.parse().map_err(|_| "a whole number")
}

/// A whole number that is not negative.
pub(crate) fn count(text: &str) -> Result<u64, Expected> {
    integer(text).ok().and_then(|number| number.try_into().ok()).ok_or("a whole number from 0")
}

/// A number; neither infinite nor NaN, which no budget can be compared with.
pub(crate) fn number(text: &str) -> Result<f64, Expected> {
    text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or("a number")
}

/// Any JSON, made compact; `null` is none.
pub(crate) fn json(text: &str) -> Result<Option<serde_json::Value>, Expected> {
    match serde_json::from_str(text) {
        Ok(serde_json::Value::Null) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err("JSON"),
    }
}

/// A JSON list of strings; `null` is the empty one.
pub(crate) fn list(text: &str) -> Result<Vec<String>, Expected> {
    let list: Result<Option<Vec<String>>, _> = serde_json::from_str(text);
    list.map(Option::unwrap_or_default).map_err(|_| "a JSON list of strings, such as [\"chat\"]")
}

/// The name of something: a text, or a number that is its id.
#[derive(Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Positive(u64),
    Negative(i64),
}

/// A JSON list of names, numbers as decimals; `null` is the empty one.
pub(crate) fn names(text: &str) -> Result<Vec<String>, Expected> {
    let list: Result<Option<Vec<Name>>, _> = serde_json::from_str(text);
    let names = list.map_err(|_| "a JSON list of texts and whole numbers, such as [\"chat\", 7]")?;
    let decimal = |name| match name {
        Name::Text(text) => text,
        Name::Positive(id) => id.to_string(),
        Name::Negative(id) => id.to_string(),
    };
    Ok(names.unwrap_or_default().into_iter().map(decimal).collect())
}

/// A list that restricts, from the JSON of its cell: none of it is no restriction; one that is no
/// list, or has an entry that means nothing, allows nothing.
pub fn allow_list<T: FromStr>(cell: Option<&str>) -> AllowList<T> {
    allow(cell, list)
}

/// The same for a list of names.
pub(crate) fn allowed_names(cell: Option<&str>) -> AllowList<String> {
    allow(cell, names)
}

fn allow<T: FromStr>(
    cell: Option<&str>,
    read: impl FnOnce(&str) -> Result<Vec<String>, Expected>,
) -> AllowList<T> {
    let Ok(entries) = cell.map_or_else(|| Ok(Vec::new()), read) else { return AllowList::Unreadable };
    let entries: Result<Vec<_>, _> = entries.iter().map(|entry| entry.parse()).collect();
    match entries {
        Ok(entries) if entries.is_empty() => AllowList::Any,
        Ok(entries) => AllowList::Only(entries),
        Err(_) => AllowList::Unreadable,
    }
}

/// Why [`allow_list`] or [`allowed_names`] cannot read a list: the entry that is not valid, or the form of the whole.
pub(crate) fn list_problem<T: FromStr<Err: Display>>(
    cell: Option<&str>,
    read: impl FnOnce(&str) -> Result<Vec<String>, Expected>,
) -> String {
    let entries = match cell.map_or_else(|| Ok(Vec::new()), read) {
        Ok(entries) => entries,
        Err(expected) => return format!("is not {expected}"),
    };
    let invalid = entries.iter().find_map(|entry| Some((entry, entry.parse::<T>().err()?)));
    invalid.map_or_else(String::new, |(entry, error)| format!("has the entry {entry:?}, which {error}"))
}

/// When a key ends: a time, `infinity` or `-infinity`. What lies beyond the year 9999 never comes, and what was
/// before Christ is past.
pub(crate) fn expiry(text: &str) -> Result<Expiry, Expected> {
    match text {
        _ if text.eq_ignore_ascii_case("infinity") => Ok(Expiry::Never),
        _ if text.eq_ignore_ascii_case("-infinity") => Ok(Expiry::Always),
        _ => parse_time(text).ok_or(A_TIME),
    }
}

/// ISO 8601 with a space or a `T`, an optional fraction and an optional offset; without one it is UTC. A date alone
/// is its first moment.
pub(crate) fn timestamp(text: &str) -> Result<OffsetDateTime, Expected> {
    match parse_time(text) {
        Some(Expiry::At(time)) => Ok(time),
        _ => Err(A_TIME),
    }
}

const A_TIME: Expected = "a timestamp, such as 2026-12-31T23:59:59Z";

/// The form that [`timestamp`] reads and both databases sort by time; in UTC, offset not written.
pub(crate) fn write_timestamp(time: OffsetDateTime) -> String {
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
    // A year that is as long, where the calendar does not go so far. 1 BC was the year before 1.
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

/// The two digits at this place.
fn two_digits(text: &str, at: usize) -> Option<u32> {
    digits(text.get(at..at + 2)?)
}

/// Only digits: `parse` alone would take a sign.
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
    Some((format!("{:0<9}", &text[..end]).parse().ok()?, &text[end..]))
}

/// Nothing, `Z`, `+02`, `+0200`, `+02:00` or `+02:00:00`.
fn offset(text: &str) -> Option<UtcOffset> {
    if text.is_empty() || text.eq_ignore_ascii_case("z") {
        return Some(UtcOffset::UTC);
    }
    let sign = match text.as_bytes()[0] {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let parts = text[1..].replace(':', "");
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
    use crate::record::network::Network;
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

    #[test]
    fn numbers_in_a_list_of_names_are_ids() {
        assert_eq!(
            names(r#"["a", 7, -1, 18446744073709551615, "8"]"#).map(|names| names.join(" ")),
            Ok("a 7 -1 18446744073709551615 8".into())
        );
        assert_eq!((names("null"), names("[]")), (Ok(vec![]), Ok(vec![])));
        for bad in
            ["", "7", "[7.5]", "[7.0]", "[null]", "[true]", "[[7]]", "[18446744073709551616]", r#"{"7": 7}"#]
        {
            assert!(names(bad).is_err(), "{bad}");
            assert_eq!(allowed_names(Some(bad)), AllowList::Unreadable, "{bad}");
        }
    }

    #[test]
    fn absent_allow_list_is_no_restriction_and_an_unreadable_one_is_no_list() {
        for open in [None, Some("null"), Some("[]"), Some(" [ ] ")] {
            assert_eq!(allow_list::<String>(open), AllowList::Any, "{open:?}");
        }
        assert_eq!(allow_list::<String>(Some(r#"["a","b"]"#)), AllowList::Only(vec!["a".into(), "b".into()]));
        for bad in ["", "a", "{}", "[1]", "[null]", r#""[]""#, r#"["a""#, "false", "0"] {
            assert_eq!(allow_list::<String>(Some(bad)), AllowList::Unreadable, "{bad}");
        }
        let networks = allow_list::<Network>(Some(r#"["10.0.0.0/8","10.0.0.256"]"#));
        assert_eq!(networks, AllowList::Unreadable, "one bad entry spoils the list");
    }

    #[test]
    fn numbers_are_read_strictly() {
        assert_eq!(integer("-3"), Ok(-3));
        assert_eq!(integer("500.00"), Ok(500));
        assert!(["", "5.", "5.5", "1e3", "NaN", "99999999999999999999"].iter().all(|t| integer(t).is_err()));
        assert_eq!(count("0"), Ok(0));
        assert!(count("-1").is_err());
        assert_eq!(number("12.5"), Ok(12.5));
        assert!(["NaN", "inf", "1e400", ""].iter().all(|text| number(text).is_err()));
        assert_eq!((boolean("1.00"), boolean("0.0")), (Ok(true), Ok(false)));
        assert!(["yes", "2", "-1", "0.5", ""].iter().all(|text| boolean(text).is_err()));
    }
}
