//! Times as people write them: a time of RFC 3339, or its distance from now.

use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

/// Why a text is no time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MomentError {
    /// It has neither form.
    Form,
    /// It is further from now than the calendar goes.
    Distance,
}

/// What is wrong with a text of neither form.
pub(crate) const FORM: &str = "is neither a time such as 2026-12-31T23:59:59Z nor a duration such as 90d";

/// A time, or how far ahead it is. In UTC.
pub(crate) fn ahead(text: &str, now: OffsetDateTime) -> Result<OffsetDateTime, MomentError> {
    moment(text, |distance| now.checked_add(distance))
}

/// A time, or how long ago it was. In UTC.
pub(crate) fn ago(text: &str, now: OffsetDateTime) -> Result<OffsetDateTime, MomentError> {
    moment(text, |distance| now.checked_sub(distance))
}

fn moment(
    text: &str,
    from_now: impl FnOnce(Duration) -> Option<OffsetDateTime>,
) -> Result<OffsetDateTime, MomentError> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time.to_offset(time::UtcOffset::UTC));
    }
    let distance = humantime::parse_duration(text).map_err(|_| MomentError::Form)?;
    distance.try_into().ok().and_then(from_now).ok_or(MomentError::Distance)
}
