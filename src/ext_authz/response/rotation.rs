//! Headers that tell the callers of a rotated key that it ends: `Deprecation` (RFC 9745), `Sunset` (RFC 8594) and `Link`.

use time::{OffsetDateTime, UtcOffset, format_description::BorrowedFormatItem, macros::format_description};

use super::header_option::{append_header, put_header};
use crate::{
    config::RotationLink,
    record::{Expiry, KeyRecord},
};

/// A date of HTTP (RFC 9110).
const HTTP_DATE: &[BorrowedFormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");

/// Writes the headers for the client, as this field of the response. A key that has no successor has none. They replace
/// those of the upstream, but for its links.
pub(super) fn put_client_headers(
    into: &mut Vec<u8>,
    number: u32,
    record: &KeyRecord,
    link: Option<&RotationLink>,
) {
    let Some(successor) = record.successor() else { return };
    if let Some(rotated_at) = successor.rotated_at {
        put_header(into, number, "deprecation", &format!("@{}", rotated_at.unix_timestamp()));
    }
    if let Some(date) = http_date(record.expiry) {
        put_header(into, number, "sunset", &date);
    }
    if let Some(link) = link {
        let value = format!("<{}>; rel=\"deprecation sunset\"", link.as_str());
        append_header(into, number, "link", &value);
    }
}

fn http_date(expiry: Expiry) -> Option<String> {
    match expiry {
        Expiry::At(end) => OffsetDateTime::format(end.to_offset(UtcOffset::UTC), HTTP_DATE).ok(),
        Expiry::Never | Expiry::Always => None,
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn date_is_one_of_http() {
        let end = Expiry::At(datetime!(2026-12-04 18:07:09.75 +2));
        assert_eq!(http_date(end).as_deref(), Some("Fri, 04 Dec 2026 16:07:09 GMT"));
        assert_eq!(http_date(Expiry::Never), None);
    }
}
