//! A time of a database is read as its standard says, and written so that it is read again. The input is the text of a time.

use keystile::{
    record::Expiry,
    store::{expiry, timestamp, write_timestamp},
};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

/// Fails if a fact does not hold for this input.
pub fn check(text: &str) {
    let read = expiry(text);
    if let Ok(Expiry::At(time)) = read {
        assert_eq!(timestamp(text), Ok(time), "a time that keys can end at is a time");
        let written = write_timestamp(time);
        let again = timestamp(&written).expect("read as it is written");
        assert_eq!(again.unix_timestamp_nanos(), time.unix_timestamp_nanos().div_euclid(1000) * 1000);
        assert_eq!(expiry(&written), Ok(Expiry::At(again)));
    } else {
        assert!(timestamp(text).is_err(), "{text:?}");
    }
    // A leap second has no place in the calendar of either database, and the other reader takes any byte for the `T`.
    if let Ok(standard) = OffsetDateTime::parse(text, &Rfc3339)
        && !text.contains(":60")
        && text[10..].starts_with(['T', 't', ' '])
        && let Some(standard) = standard.checked_to_offset(UtcOffset::UTC)
        && standard.year() >= 0
    {
        assert_eq!(read, Ok(Expiry::At(standard)), "{text:?} is RFC 3339");
    }
    if let Ok(Expiry::At(time)) = read
        && let Some(standard) = standard(text)
    {
        assert_eq!(OffsetDateTime::parse(&standard, &Rfc3339).ok(), Some(time), "{text:?} as {standard}");
    }
}

/// The same time in RFC 3339, by changes of its text alone. None where the standard has no such form: offsets with
/// seconds, or of a day and more.
fn standard(text: &str) -> Option<String> {
    let (date, rest) = text.split_at_checked(10)?;
    let Some(clock) = rest.get(1..9) else { return Some(format!("{date}T00:00:00Z")) };
    let rest = &rest[9..];
    let end = rest.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(rest.len());
    let (fraction, offset) = rest.split_at(end);
    let offset = match offset.replace(':', "").as_str() {
        "" | "Z" | "z" => "Z".to_owned(),
        hours if hours.len() == 3 => format!("{hours}:00"),
        minutes if minutes.len() == 5 => format!("{}:{}", &minutes[..3], &minutes[3..]),
        _ => return None,
    };
    if offset.get(1..3).is_some_and(|hours| hours >= "24") {
        return None;
    }
    Some(format!("{date}T{clock}{fraction}{offset}"))
}
