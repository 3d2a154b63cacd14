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
    value: fn(&Told<'_>) -> Option<String>,
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

impl Told<'_> {
    fn left(&self, span: Span) -> Option<&Left> {
        self.standing?.windows[span as usize].as_ref()
    }
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
        value: |told| Some(told.result.to_owned()),
    },
    UpstreamHeader {
        name: "x-auth-user-id",
        about: "`users.id`",
        value: |told| Some(told.record?.user.id.0.to_string()),
    },
    UpstreamHeader {
        name: "x-auth-user-name",
        about: "`users.username`",
        value: |told| text(told.record?.user.name.as_deref()),
    },
    UpstreamHeader {
        name: "x-auth-user-email",
        about: "`users.email`",
        value: |told| text(told.record?.user.email.as_deref()),
    },
    UpstreamHeader {
        name: "x-auth-user-role",
        about: "`users.role`, or the name of the role that `users.role_id` points to",
        value: |told| text(told.record?.user.role.as_deref()),
    },
    UpstreamHeader {
        name: "x-auth-user-superuser",
        about: "`true` or `false`",
        value: |told| Some(told.record?.user.is_superuser.to_string()),
    },
    UpstreamHeader {
        name: "x-auth-key-id",
        about: "`api_keys.id`",
        value: |told| Some(told.record?.id.0.to_string()),
    },
    UpstreamHeader {
        name: "x-auth-key-name",
        about: "`api_keys.name`",
        value: |told| text(told.record?.name.as_deref()),
    },
    UpstreamHeader {
        name: "x-auth-key-prefix",
        about: "the key's first eight characters",
        value: |told| text(Some(told.record?.prefix.as_str())),
    },
    UpstreamHeader {
        name: "x-auth-key-expires-at",
        about: "RFC 3339, in UTC; absent when the key does not expire",
        value: |told| expiry(told.record?.expiry),
    },
    UpstreamHeader { name: "x-auth-scopes", about: "list", value: |told| list(&told.record?.scopes) },
    UpstreamHeader { name: "x-auth-tags", about: "list", value: |told| list(&told.record?.tags) },
    UpstreamHeader {
        name: "x-auth-permissions",
        about: "JSON, as stored",
        value: |told| text(told.record?.permissions.as_deref()),
    },
    UpstreamHeader {
        name: "x-auth-allowed-models",
        about: "list; absent means unrestricted",
        value: |told| allowed(&told.record?.allowed.models),
    },
    UpstreamHeader {
        name: "x-auth-allowed-chatbots",
        about: "list; absent means unrestricted",
        value: |told| allowed(&told.record?.allowed.chatbots),
    },
    UpstreamHeader {
        name: "x-auth-allowed-agents",
        about: "list; absent means unrestricted",
        value: |told| allowed(&told.record?.allowed.agents),
    },
    UpstreamHeader {
        name: "x-auth-budget-unlimited",
        about: "`true` or `false`",
        value: |told| number(told.record?.budget.unlimited),
    },
    UpstreamHeader {
        name: "x-auth-budget-limit-cents",
        about: "`budget_limit_cents`",
        value: |told| number(told.record?.budget.limit_cents),
    },
    UpstreamHeader {
        name: "x-auth-budget-type",
        about: "`budget_type`",
        value: |told| text(told.record?.budget.kind.as_deref()),
    },
    UpstreamHeader {
        name: "x-auth-budget-spent-cents",
        about: "`total_cost`, as it was when the record was read",
        value: |told| number(told.record?.budget.spent_cents),
    },
    UpstreamHeader {
        name: "x-ratelimit-limit-minute",
        about: "`rate_limit_per_minute`; absent means unlimited",
        value: |told| number(told.record?.limits.minute),
    },
    UpstreamHeader {
        name: "x-ratelimit-limit-hour",
        about: "`rate_limit_per_hour`; absent means unlimited",
        value: |told| number(told.record?.limits.hour),
    },
    UpstreamHeader {
        name: "x-ratelimit-limit-day",
        about: "`rate_limit_per_day`; absent means unlimited",
        value: |told| number(told.record?.limits.day),
    },
    UpstreamHeader {
        name: "x-ratelimit-remaining-minute",
        about: "what is left of it in this minute; only where limits are counted (`KEYSTILE_RATE_LIMIT`)",
        value: |told| told.left(Span::Minute).map(|left| left.remaining.to_string()),
    },
    UpstreamHeader {
        name: "x-ratelimit-remaining-hour",
        about: "what is left of it in this hour; only where limits are counted (`KEYSTILE_RATE_LIMIT`)",
        value: |told| told.left(Span::Hour).map(|left| left.remaining.to_string()),
    },
    UpstreamHeader {
        name: "x-ratelimit-remaining-day",
        about: "what is left of it in this day; only where limits are counted (`KEYSTILE_RATE_LIMIT`)",
        value: |told| told.left(Span::Day).map(|left| left.remaining.to_string()),
    },
    UpstreamHeader {
        name: "x-ratelimit-reset-minute",
        about: "seconds until this minute is over, of the UTC clock; only where limits are counted",
        value: |told| told.left(Span::Minute).map(|left| left.reset_seconds().to_string()),
    },
    UpstreamHeader {
        name: "x-ratelimit-reset-hour",
        about: "seconds until this hour is over, of the UTC clock; only where limits are counted",
        value: |told| told.left(Span::Hour).map(|left| left.reset_seconds().to_string()),
    },
    UpstreamHeader {
        name: "x-ratelimit-reset-day",
        about: "seconds until this day is over, of the UTC clock; only where limits are counted",
        value: |told| told.left(Span::Day).map(|left| left.reset_seconds().to_string()),
    },
];

impl UpstreamHeader {
    /// The value for this request, safe in a header; `None` when the header must not be there.
    pub fn value(&self, told: &Told<'_>) -> Option<String> {
        (self.value)(told)
    }
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
