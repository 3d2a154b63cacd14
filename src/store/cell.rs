//! What a database's cells mean: every value arrives as text, and is read here.

use std::str::FromStr;

use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};

use crate::record::{AllowList, Expiry};

/// One value as a database hands it over; `None` is NULL.
pub type Cell = Option<String>;

/// Says what a value should have been, never what it was: a cell may hold a secret.
pub(crate) type Expected = &'static str;

/// `true` and `t` from Postgres, `1` from SQLite.
pub(crate) fn boolean(text: &str) -> Result<bool, Expected> {
    match text {
        "1" => Ok(true),
        "0" => Ok(false),
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

/// A list that restricts, from the JSON of its cell: none of it is no restriction; one that is no
/// list, or has an entry that means nothing, allows nothing.
pub fn allow_list<T: FromStr>(cell: Option<&str>) -> AllowList<T> {
    let Ok(entries) = cell.map_or_else(|| Ok(Vec::new()), list) else { return AllowList::Unreadable };
    let entries: Result<Vec<_>, _> = entries.iter().map(|entry| entry.parse()).collect();
    match entries {
        Ok(entries) if entries.is_empty() => AllowList::Any,
        Ok(entries) => AllowList::Only(entries),
        Err(_) => AllowList::Unreadable,
    }
}

/// When a key ends: a [`timestamp`], `infinity` or `-infinity`.
pub(crate) fn expiry(text: &str) -> Result<Expiry, Expected> {
    match text {
        _ if text.eq_ignore_ascii_case("infinity") => Ok(Expiry::Never),
        _ if text.eq_ignore_ascii_case("-infinity") => Ok(Expiry::Always),
        _ => timestamp(text).map(Expiry::At),
    }
}

/// ISO 8601 with a space or a `T`, an optional fraction and an optional offset; without one it is UTC.
pub(crate) fn timestamp(text: &str) -> Result<OffsetDateTime, Expected> {
    parse_timestamp(text).ok_or("a timestamp, such as 2026-12-31T23:59:59Z")
}

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

fn parse_timestamp(text: &str) -> Option<OffsetDateTime> {
    let (date_time, rest) = text.split_at_checked(19)?;
    let number = |from: usize, len: usize| digits(date_time.get(from..from + len)?);
    let separators = [(4, "-"), (7, "-"), (13, ":"), (16, ":")];
    let separated = separators.iter().all(|&(at, mark)| date_time.get(at..at + 1) == Some(mark));
    if !separated || !matches!(date_time.as_bytes()[10], b' ' | b'T' | b't') {
        return None;
    }
    let month = Month::try_from(u8::try_from(number(5, 2)?).ok()?).ok()?;
    let date =
        Date::from_calendar_date(number(0, 4)?.try_into().ok()?, month, number(8, 2)?.try_into().ok()?);
    let (nanosecond, rest) = fraction(rest)?;
    let [hour, minute, second] = [number(11, 2)?, number(14, 2)?, number(17, 2)?];
    let time = Time::from_hms_nano(
        hour.try_into().ok()?,
        minute.try_into().ok()?,
        second.try_into().ok()?,
        nanosecond,
    );
    let local = PrimitiveDateTime::new(date.ok()?, time.ok()?).assume_offset(offset(rest)?);
    local.checked_to_offset(UtcOffset::UTC)
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
        ] {
            assert_eq!(timestamp(text), expected, "{text}");
        }
        for bad in [
            "",
            "soon",
            "2026-01-02",
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
        assert!(expiry("never").is_err());
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
        assert!(boolean("yes").is_err());
    }
}
