//! Every header that the upstream may see from us, in one table: name, meaning, value.
//!
//! A row without a value for the request at hand is removed from it if it may be there, so that a client's own
//! copy of the header cannot pass for ours.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use time::format_description::well_known::Rfc3339;

use crate::{
    limits::{Left, Span, Standing},
    record::{AllowList, Expiry, KeyRecord},
};

/// One header.
#[derive(Debug, Clone, Copy)]
pub struct UpstreamHeader {
    /// Its name, lower-case.
    pub name: &'static str,
    /// What it says, for the README.
    pub about: &'static str,
    value: Value,
}

#[derive(Debug, Clone, Copy)]
enum Value {
    Result,
    /// What its record says: the same for every request with the key.
    OfKey(fn(&KeyRecord) -> Option<String>),
    /// What is left of one of its limits after this request.
    OfWindow(Span, fn(&Left) -> u64),
}

/// What the upstream is told of a decision.
#[derive(Debug, Clone, Copy)]
pub struct Told<'a> {
    /// How the decision went, in a word.
    pub result: &'static str,
    /// The key, if one was proven.
    pub record: Option<&'a KeyRecord>,
    /// What is left of its limits, where they are counted.
    pub standing: Option<&'a Standing>,
}

/// Outside printable ASCII, or `%`: what no value holds as it is.
const VALUE: &AsciiSet = &CONTROLS.add(b'%');
/// In a list, the comma is the separator.
const LIST_ITEM: &AsciiSet = &VALUE.add(b',');

/// All of them, in the order in which they are documented.
pub const TABLE: &[UpstreamHeader] = &[
    UpstreamHeader {
        name: "x-auth-result",
        about: "`allow`; `anonymous` where the route needs no key and there was none; in shadow mode the code of the denial",
        value: Value::Result,
    },
    of_key("x-auth-user-id", "`users.id`", |key| Some(key.user.id.0.to_string())),
    of_key("x-auth-user-name", "`users.username`", |key| text(key.user.name.as_deref())),
    of_key("x-auth-user-email", "`users.email`", |key| text(key.user.email.as_deref())),
    of_key(
        "x-auth-user-role",
        "`users.role`, or the name of the role that `users.role_id` points to",
        |key| text(key.user.role.as_deref()),
    ),
    of_key("x-auth-user-superuser", "`true` or `false`", |key| Some(key.user.is_superuser.to_string())),
    of_key("x-auth-key-id", "`api_keys.id`", |key| Some(key.id.0.to_string())),
    of_key("x-auth-key-name", "`api_keys.name`", |key| text(key.name.as_deref())),
    of_key("x-auth-key-prefix", "the key's first eight characters", |key| text(Some(key.prefix.as_str()))),
    of_key("x-auth-key-expires-at", "RFC 3339, in UTC; absent when the key does not expire", |key| {
        expiry(key.expiry)
    }),
    of_key("x-auth-scopes", "list", |key| list(&key.scopes)),
    of_key("x-auth-tags", "list", |key| list(&key.tags)),
    of_key("x-auth-permissions", "JSON, as stored", |key| text(key.permissions.as_deref())),
    of_key("x-auth-allowed-models", "list; absent means unrestricted", |key| allowed(&key.allowed.models)),
    of_key("x-auth-allowed-chatbots", "list; absent means unrestricted", |key| {
        allowed(&key.allowed.chatbots)
    }),
    of_key("x-auth-allowed-agents", "list; absent means unrestricted", |key| allowed(&key.allowed.agents)),
    of_key("x-auth-budget-unlimited", "`true` or `false`", |key| number(key.budget.unlimited)),
    of_key("x-auth-budget-limit-cents", "`budget_limit_cents`", |key| number(key.budget.limit_cents)),
    of_key("x-auth-budget-type", "`budget_type`", |key| text(key.budget.kind.as_deref())),
    of_key("x-auth-budget-spent-cents", "`total_cost`, as it was when the record was read", |key| {
        number(key.budget.spent_cents)
    }),
    of_key("x-ratelimit-limit-minute", "`rate_limit_per_minute`; absent means unlimited", |key| {
        number(key.limits.minute)
    }),
    of_key("x-ratelimit-limit-hour", "`rate_limit_per_hour`; absent means unlimited", |key| {
        number(key.limits.hour)
    }),
    of_key("x-ratelimit-limit-day", "`rate_limit_per_day`; absent means unlimited", |key| {
        number(key.limits.day)
    }),
    of_window(
        "x-ratelimit-remaining-minute",
        "what is left of it in this minute; only where limits are counted (`KEYSTILE_RATE_LIMIT`)",
        Span::Minute,
        |left| left.remaining,
    ),
    of_window(
        "x-ratelimit-remaining-hour",
        "what is left of it in this hour; only where limits are counted (`KEYSTILE_RATE_LIMIT`)",
        Span::Hour,
        |left| left.remaining,
    ),
    of_window(
        "x-ratelimit-remaining-day",
        "what is left of it in this day; only where limits are counted (`KEYSTILE_RATE_LIMIT`)",
        Span::Day,
        |left| left.remaining,
    ),
    of_window(
        "x-ratelimit-reset-minute",
        "seconds until this minute is over, of the UTC clock; only where limits are counted",
        Span::Minute,
        |left| left.reset_seconds(),
    ),
    of_window(
        "x-ratelimit-reset-hour",
        "seconds until this hour is over, of the UTC clock; only where limits are counted",
        Span::Hour,
        |left| left.reset_seconds(),
    ),
    of_window(
        "x-ratelimit-reset-day",
        "seconds until this day is over, of the UTC clock; only where limits are counted",
        Span::Day,
        |left| left.reset_seconds(),
    ),
];

impl UpstreamHeader {
    /// The value for this request, safe in a header; `None` when the header must not be there.
    pub fn value(&self, told: &Told<'_>) -> Option<String> {
        match self.value {
            Value::Result => Some(told.result.to_owned()),
            Value::OfKey(value) => value(told.record?),
            Value::OfWindow(..) => self.left(told.standing?).map(|left| left.to_string()),
        }
    }

    /// What it says of what is left of the key's limits, if that is what it is about.
    pub(super) fn left(&self, standing: &Standing) -> Option<u64> {
        match self.value {
            Value::OfWindow(span, value) => standing.windows[span as usize].as_ref().map(value),
            Value::Result | Value::OfKey(_) => None,
        }
    }

    /// Whether it says something else after each request of a key with limits.
    pub fn is_counted(&self) -> bool {
        matches!(self.value, Value::OfWindow(..))
    }
}

const fn of_key(
    name: &'static str,
    about: &'static str,
    value: fn(&KeyRecord) -> Option<String>,
) -> UpstreamHeader {
    UpstreamHeader { name, about, value: Value::OfKey(value) }
}

const fn of_window(
    name: &'static str,
    about: &'static str,
    span: Span,
    value: fn(&Left) -> u64,
) -> UpstreamHeader {
    UpstreamHeader { name, about, value: Value::OfWindow(span, value) }
}

fn text(value: Option<&str>) -> Option<String> {
    value.filter(|value| !value.is_empty()).map(|value| encoded(value, VALUE))
}

fn number(value: Option<impl ToString>) -> Option<String> {
    value.map(|value| value.to_string())
}

fn list<T: ToString>(items: &[T]) -> Option<String> {
    let items: Vec<_> = items.iter().map(|item| encoded(&item.to_string(), LIST_ITEM)).collect();
    (!items.is_empty()).then(|| items.join(","))
}

fn allowed<T: ToString>(allowed: &AllowList<T>) -> Option<String> {
    list(allowed.entries())
}

fn expiry(expiry: Expiry) -> Option<String> {
    match expiry {
        Expiry::At(end) => end.format(&Rfc3339).ok(),
        Expiry::Never | Expiry::Always => None,
    }
}

/// Percent-encodes what is in `set` and all that is not ASCII. Blanks at the ends too: whoever
/// reads the header trims them, and then `"admin "` would read as `admin`.
fn encoded(value: &str, set: &'static AsciiSet) -> String {
    let inner = value.trim_matches(' ');
    let (before, after) = match value.find(inner) {
        Some(start) if !inner.is_empty() => (start, value.len() - start - inner.len()),
        _ => (value.len(), 0),
    };
    let inner: Cow<'_, str> = percent_encode(inner.as_bytes(), set).into();
    format!("{}{inner}{}", "%20".repeat(before), "%20".repeat(after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::sample;
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;
    use time::macros::datetime;

    fn values(change: impl FnOnce(&mut KeyRecord)) -> Vec<(&'static str, Option<String>)> {
        let mut record = sample::record();
        change(&mut record);
        let told = Told { result: "allow", record: Some(&record), standing: None };
        TABLE.iter().map(|header| (header.name, header.value(&told))).collect()
    }

    fn value(name: &str, change: impl FnOnce(&mut KeyRecord)) -> Option<String> {
        let values = values(change);
        values.into_iter().find(|(other, _)| *other == name).expect("in the table").1
    }

    #[test]
    fn what_the_record_says_is_told() {
        for (name, expected) in [
            ("x-auth-user-id", "42"),
            ("x-auth-user-superuser", "false"),
            ("x-auth-key-prefix", "ks_sampl"),
            ("x-auth-scopes", "chat,embed"),
            ("x-auth-tags", "team:a%2Cb"),
            ("x-auth-permissions", r#"{"files":"read"}"#),
            ("x-auth-budget-spent-cents", "12.5"),
            ("x-ratelimit-limit-minute", "60"),
        ] {
            assert_eq!(value(name, |_| ()).as_deref(), Some(expected), "{name}");
        }
    }

    #[test]
    fn what_it_does_not_say_is_absent() {
        let nothing = |record: &mut KeyRecord| {
            record.scopes.clear();
            record.name = Some(String::new());
            record.expiry = Expiry::Never;
        };
        for name in [
            "x-auth-scopes",
            "x-auth-key-name",
            "x-auth-key-expires-at",
            "x-auth-allowed-models",
            "x-ratelimit-limit-hour",
        ] {
            assert_eq!(value(name, nothing), None, "{name}");
        }
    }

    #[test]
    fn nobody_has_no_identity() {
        let nobody = Told { result: "anonymous", record: None, standing: None };
        let told: Vec<_> =
            TABLE.iter().filter_map(|header| Some((header.name, header.value(&nobody)?))).collect();
        assert_eq!(told, [("x-auth-result", "anonymous".to_owned())]);
    }

    #[test]
    fn expiry_is_rfc_3339() {
        let at = datetime!(2026-12-31 23:59:59 UTC);
        let told = value("x-auth-key-expires-at", |record| record.expiry = Expiry::At(at));
        assert_eq!(told.as_deref(), Some("2026-12-31T23:59:59Z"));
    }

    #[test]
    fn names_are_unique_and_lower_case() {
        let mut names: Vec<_> = TABLE.iter().map(|header| header.name).collect();
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TABLE.len());
    }

    proptest! {
        #[test]
        fn any_text_is_safe_in_a_header_and_comes_back(text in any::<String>()) {
            let Some(told) = value("x-auth-user-name", |record| record.user.name = Some(text.clone())) else {
                prop_assert_eq!(text, "");
                return Ok(());
            };
            prop_assert!(told.bytes().all(|byte| (0x20..=0x7e).contains(&byte)));
            prop_assert_eq!(told.trim(), &told);
            prop_assert_eq!(percent_decode_str(&told).decode_utf8().expect("UTF-8"), text);
        }

        #[test]
        fn any_list_comes_back_item_by_item(items in proptest::collection::vec(any::<String>(), 1..5)) {
            let told = value("x-auth-scopes", |record| record.scopes = items.clone()).expect("not empty");
            let back: Vec<_> = told
                .split(',')
                .map(|item| percent_decode_str(item).decode_utf8().expect("UTF-8").into_owned())
                .collect();
            prop_assert_eq!(back, items);
        }
    }
}
