//! Numbers and times in words.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const YEAR: u64 = 365 * DAY;

/// From this year on, a time stands for "never".
const NEVER: i32 = 9999;

/// A time as programs read it: RFC 3339, in whole seconds. A text that is no time is returned as it is.
pub(super) fn whole_seconds(text: &str) -> String {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok().and_then(|time| time.replace_nanosecond(0).ok());
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| text.to_owned())
}

/// A time such as `3d ago` or `in 5h`. A text that is no RFC 3339 time is returned as it is.
pub(super) fn relative(text: &str, now: OffsetDateTime) -> String {
    let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) else { return text.to_owned() };
    if time.year() >= NEVER {
        return "never".to_owned();
    }
    let seconds = (now - time).whole_seconds();
    let amount = match seconds.unsigned_abs() {
        0..MINUTE => return "now".to_owned(),
        minutes @ MINUTE..HOUR => format!("{}m", minutes / MINUTE),
        hours @ HOUR..DAY => format!("{}h", hours / HOUR),
        // Up to two years in days, since an expiry is often given so.
        days if days < 2 * YEAR => format!("{}d", days / DAY),
        years => format!("{}y", years / YEAR),
    };
    if seconds > 0 { format!("{amount} ago") } else { format!("in {amount}") }
}

/// A number with its noun: `1 instance`, `3 instances`.
pub(crate) fn count(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn times_for_programs_have_whole_seconds() {
        for (text, shown) in [
            ("2026-06-01T11:59:30.123456Z", "2026-06-01T11:59:30Z"),
            ("2026-06-01T11:59:30+02:00", "2026-06-01T11:59:30+02:00"),
            ("infinity", "infinity"),
            ("", ""),
        ] {
            assert_eq!(whole_seconds(text), shown);
        }
    }

    #[test]
    fn times_are_shown_relative_to_now() {
        let now = datetime!(2026-06-01 12:00:00 UTC);
        for (text, shown) in [
            ("2026-06-01T11:59:30Z", "now"),
            ("2026-06-01T12:00:30.5Z", "now"),
            ("2026-06-01T11:58:59Z", "1m ago"),
            ("2026-06-01T15:00:00Z", "in 3h"),
            ("2026-05-29T14:00:00+02:00", "3d ago"),
            ("2027-06-01T12:00:00Z", "in 365d"),
            ("2020-06-01T12:00:00Z", "6y ago"),
            ("9999-12-31T23:59:59Z", "never"),
            ("soon", "soon"),
            ("", ""),
        ] {
            assert_eq!(relative(text, now), shown, "{text}");
        }
    }
}
