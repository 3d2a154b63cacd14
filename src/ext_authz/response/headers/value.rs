//! Values of headers: printable ASCII, from which the text comes back exactly.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use time::format_description::well_known::Rfc3339;

use crate::record::{AllowList, Expiry};

/// The value in place of one that is too long. It names nothing: an absent list would mean no restriction.
pub const TRUNCATED: &str = "!truncated";

/// The value in place of a list that cannot be read, where shadow mode lets the request pass. It names nothing.
const UNREADABLE: &str = "!unreadable";

/// Characters outside printable ASCII, and `%`, which are encoded.
const VALUE: &AsciiSet = &CONTROLS.add(b'%');
/// In a list, the comma is the separator.
const LIST_ITEM: &AsciiSet = &VALUE.add(b',');

pub(super) fn text(value: Option<&str>) -> Option<String> {
    value.filter(|value| !value.is_empty()).map(|value| encoded(value, VALUE))
}

pub(super) fn number(value: Option<impl ToString>) -> Option<String> {
    value.map(|value| value.to_string())
}

pub(super) fn list<T: ToString>(items: &[T]) -> Option<String> {
    let items: Vec<_> = items.iter().map(|item| encoded(&item.to_string(), LIST_ITEM)).collect();
    (!items.is_empty()).then(|| items.join(","))
}

pub(super) fn allowed<T: ToString>(allowed: &AllowList<T>) -> Option<String> {
    match allowed {
        AllowList::Any => None,
        // Many programs take an empty header for an absent one. Two empty names restrict as one does.
        AllowList::Only(entries) => {
            list(entries).map(|list| if list.is_empty() { ",".to_owned() } else { list })
        }
        AllowList::Unreadable => Some(UNREADABLE.to_owned()),
    }
}

pub(super) fn expiry(expiry: Expiry) -> Option<String> {
    match expiry {
        Expiry::At(end) => end.format(&Rfc3339).ok(),
        Expiry::Never | Expiry::Always => None,
    }
}

/// Percent-encodes the characters of `set` and all that are not ASCII. Blanks at the ends too: readers of a header trim
/// them, and `"admin "` would become `admin`.
fn encoded(value: &str, set: &'static AsciiSet) -> String {
    let inner = value.trim_matches(' ');
    let (before, after) = match value.find(inner) {
        Some(start) if !inner.is_empty() => (start, value.len() - start - inner.len()),
        _ => (value.len(), 0),
    };
    // It must not look like one of the values that stand for another.
    let inner: Cow<'_, str> = match inner {
        TRUNCATED => "%21truncated".into(),
        UNREADABLE => "%21unreadable".into(),
        inner => percent_encode(inner.as_bytes(), set).into(),
    };
    format!("{}{inner}{}", "%20".repeat(before), "%20".repeat(after))
}
