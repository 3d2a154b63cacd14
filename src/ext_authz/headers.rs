//! Every header that the upstream may see from us, in one table: name, meaning, value.
//!
//! A row without a value for the request at hand is removed from it if it may be there, so that a client's own
//! copy of the header cannot pass for ours.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use time::format_description::well_known::Rfc3339;

use super::Chosen;
use crate::{
    limits::{Left, Span, Standing},
    record::{AllowList, Expiry, KeyRecord},
};

/// One header.
#[derive(Debug, Clone, Copy)]
pub struct UpstreamHeader {
    /// Its name, lower-case.
    pub name: &'static str,
    /// What it says, for docs/reference/headers.md.
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
    /// The names of those that are too long.
    Truncated,
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
    UpstreamHeader {
        name: "x-auth-truncated",
        about: "list of the headers above whose value is too long, over 4 KiB, or over 16 KiB together with the others; each of them is `!truncated`, which names nothing",
        value: Value::Truncated,
    },
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

/// The value of a header that is too long for one. It names nothing: a list that is absent would mean no restriction.
pub const TRUNCATED: &str = "!truncated";

/// Longest value. Servers take 8 KiB for all headers at the least.
const MAX_VALUE: usize = 4 * 1024;
/// All values of what a record says, together. Envoy, which takes 60 KiB, has those of the client besides.
const MAX_VALUES: usize = 16 * 1024;

/// What the upstream is told, header by header.
pub(super) struct Values {
    /// By the order of [`TABLE`]; `None` where the header must not be there.
    pub(super) each: Vec<Option<String>>,
    /// Which of them are too long.
    pub(super) truncated: Vec<&'static str>,
}

impl Values {
    /// The values of those that are sent.
    pub(super) fn of(told: &Told<'_>, sent: &Chosen) -> Self {
        let values = TABLE.iter().map(|header| header.value(told).filter(|_| sent.has(header.name)));
        let mut each: Vec<_> = values.collect();
        let mut truncated = Vec::new();
        while let Some(longest) = longest(&each) {
            each[longest] = Some(TRUNCATED.to_owned());
            truncated.push(TABLE[longest].name);
        }
        let own = TABLE.iter().position(|header| matches!(header.value, Value::Truncated));
        if let Some(own) = own.filter(|own| !truncated.is_empty() && sent.has(TABLE[*own].name)) {
            each[own] = Some(truncated.join(","));
        }
        Self { each, truncated }
    }
}

/// The longest value, if one is too long, or all of them together are.
fn longest(values: &[Option<String>]) -> Option<usize> {
    let lengths = || values.iter().map(|value| value.as_ref().map_or(0, String::len));
    let (longest, length) = lengths().enumerate().max_by_key(|(_, length)| *length)?;
    (length > MAX_VALUE || lengths().sum::<usize>() > MAX_VALUES).then_some(longest)
}

impl UpstreamHeader {
    /// The value for this request, safe in a header, however long; `None` when the header must not be there.
    pub fn value(&self, told: &Told<'_>) -> Option<String> {
        match self.value {
            Value::Result => Some(told.result.to_owned()),
            Value::OfKey(value) => value(told.record?),
            Value::OfWindow(..) => self.left(told.standing?).map(|left| left.to_string()),
            Value::Truncated => None,
        }
    }

    /// What it says of what is left of the key's limits, if that is what it is about.
    pub(super) fn left(&self, standing: &Standing) -> Option<u64> {
        match self.value {
            Value::OfWindow(span, value) => standing.windows[span as usize].as_ref().map(value),
            Value::Result | Value::OfKey(_) | Value::Truncated => None,
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
    // Not to be taken for what is sent in place of a value that is too long.
    let inner: Cow<'_, str> = match inner {
        TRUNCATED => "%21truncated".into(),
        inner => percent_encode(inner.as_bytes(), set).into(),
    };
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

    fn told_of(change: impl FnOnce(&mut KeyRecord), sent: &Chosen) -> Values {
        let mut record = sample::record();
        change(&mut record);
        Values::of(&Told { result: "allow", record: Some(&record), standing: None }, sent)
    }

    fn sent<'a>(values: &'a Values, name: &str) -> Option<&'a str> {
        let place = TABLE.iter().position(|header| header.name == name).expect("in the table");
        values.each[place].as_deref()
    }

    #[test]
    fn value_over_4_kib_is_named_and_never_left_out() {
        let models = |length: usize| AllowList::Only(vec!["m".repeat(length).parse().expect("a model")]);
        for (length, expected) in [(4096, None), (4097, Some("x-auth-allowed-models"))] {
            let values = told_of(|record| record.allowed.models = models(length), &Chosen::all());
            assert_eq!(sent(&values, "x-auth-truncated"), expected, "{length}");
            let is_whole = sent(&values, "x-auth-allowed-models").map(str::len) == Some(length);
            assert_eq!(is_whole, expected.is_none());
            assert_eq!(values.truncated.is_empty(), expected.is_none());
        }
        let names = ["x-auth-tags".to_owned()];
        let only = Chosen::parse(&names, TABLE.iter().map(|header| header.name));
        let values = told_of(|record| record.allowed.models = models(5000), &only.expect("a name"));
        assert!(values.truncated.is_empty(), "what is not sent is not too long");
    }

    #[test]
    fn text_that_reads_as_truncated_is_told_from_it() {
        let values = told_of(
            |record| {
                record.scopes = vec!["!truncated".into()];
                record.name = Some("!truncated".into());
            },
            &Chosen::all(),
        );
        assert_eq!(sent(&values, "x-auth-scopes"), Some("%21truncated"));
        assert_eq!(sent(&values, "x-auth-key-name"), Some("%21truncated"));
        assert_eq!(sent(&values, "x-auth-truncated"), None);
    }

    proptest! {
        #[test]
        fn all_values_together_are_bounded_and_no_restriction_is_left_out(
            lengths in proptest::collection::vec(0..6000_usize, 8),
        ) {
            let text = |place: usize| "t".repeat(lengths[place]);
            let values = told_of(
                |record| {
                    record.user.name = Some(text(0));
                    record.user.email = Some(text(1));
                    record.name = Some(text(2));
                    record.scopes = vec![text(3), "s".into()];
                    record.tags = vec![text(4), "s".into()];
                    record.permissions = Some(text(5));
                    record.allowed.chatbots = AllowList::Only(vec![text(6), "s".into()]);
                    record.allowed.agents = AllowList::Only(vec![text(7), "s".into()]);
                },
                &Chosen::all(),
            );
            let all: usize = values.each.iter().flatten().map(String::len).sum();
            prop_assert!(all <= MAX_VALUES + 1024, "{}", all);
            for name in ["x-auth-scopes", "x-auth-allowed-chatbots", "x-auth-allowed-agents"] {
                prop_assert!(sent(&values, name).is_some_and(|value| value.len() <= MAX_VALUE));
            }
            let named: Vec<_> = sent(&values, "x-auth-truncated").into_iter().flat_map(|v| v.split(',')).collect();
            for (header, value) in TABLE.iter().zip(&values.each) {
                prop_assert_eq!(value.as_deref() == Some(TRUNCATED), named.contains(&header.name));
            }
        }

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
