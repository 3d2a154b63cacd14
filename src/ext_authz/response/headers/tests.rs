//! Facts about the headers about a record.

use super::{
    record_values::{MAX_VALUE, MAX_VALUES},
    *,
};
use crate::{
    ext_authz::field_filter::FieldFilter,
    record::{AllowList, Expiry, fixtures},
};
use percent_encoding::percent_decode_str;
use proptest::prelude::*;
use time::macros::datetime;

fn values(change: impl FnOnce(&mut KeyRecord), sent: &FieldFilter) -> RecordValues {
    let mut record = fixtures::record();
    change(&mut record);
    RecordValues::new(&record, sent)
}

fn by_name<'a>(values: &'a RecordValues, name: &str) -> Option<&'a str> {
    let place = TABLE.iter().position(|header| header.name == name).expect("in the table");
    values.values[place].as_deref()
}

/// The value of a header, however long it is.
fn value(name: &str, change: impl FnOnce(&mut KeyRecord)) -> Option<String> {
    let mut record = fixtures::record();
    change(&mut record);
    let header = TABLE.iter().find(|header| header.name == name).expect("in the table");
    let Source::Record(value) = header.source else { panic!("{name} is not about the record") };
    value(&record)
}

#[test]
fn text_of_the_record_is_sent() {
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
fn header_without_a_value_is_absent() {
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
fn expiry_is_rfc_3339() {
    let at = datetime!(2026-12-31 23:59:59 UTC);
    let sent = value("x-auth-key-expires-at", |record| record.expiry = Expiry::At(at));
    assert_eq!(sent.as_deref(), Some("2026-12-31T23:59:59Z"));
}

#[test]
fn names_are_unique_and_lower_case() {
    let mut names: Vec<_> = TABLE.iter().map(|header| header.name).collect();
    assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), TABLE.len());
}

#[test]
fn value_over_4_kib_is_named_and_never_omitted() {
    let models = |length: usize| AllowList::Only(vec!["m".repeat(length).parse().expect("a model")]);
    for (length, expected) in [(4096, None), (4097, Some("x-auth-allowed-models"))] {
        let values = values(|record| record.allowed.models = models(length), &FieldFilter::all());
        assert_eq!(by_name(&values, "x-auth-truncated"), expected, "{length}");
        let is_whole = by_name(&values, "x-auth-allowed-models").map(str::len) == Some(length);
        assert_eq!(is_whole, expected.is_none());
        assert_eq!(values.truncated.is_empty(), expected.is_none());
    }
    let names = ["x-auth-tags".to_owned()];
    let only = FieldFilter::parse(&names, TABLE.iter().map(|header| header.name));
    let values = values(|record| record.allowed.models = models(5000), &only.expect("a name"));
    assert!(values.truncated.is_empty(), "a header that is not sent is not too long");
}

#[test]
fn unreadable_list_is_sent_as_one_that_names_nothing() {
    let unreadable = |record: &mut KeyRecord| {
        record.allowed.models = AllowList::Unreadable;
        record.allowed.chatbots = AllowList::Unreadable;
        record.allowed.agents = AllowList::Unreadable;
        record.allowed.extract_templates = AllowList::Unreadable;
    };
    for list in ["models", "chatbots", "agents", "extract-templates"] {
        assert_eq!(value(&format!("x-auth-allowed-{list}"), unreadable).as_deref(), Some("!unreadable"));
    }
    let same_text =
        |record: &mut KeyRecord| record.allowed.agents = AllowList::Only(vec!["!unreadable".into()]);
    assert_eq!(value("x-auth-allowed-agents", same_text).as_deref(), Some("%21unreadable"));
}

#[test]
fn text_that_reads_as_truncated_is_encoded() {
    let values = values(
        |record| {
            record.scopes = vec!["!truncated".into()];
            record.name = Some("!truncated".into());
        },
        &FieldFilter::all(),
    );
    assert_eq!(by_name(&values, "x-auth-scopes"), Some("%21truncated"));
    assert_eq!(by_name(&values, "x-auth-key-name"), Some("%21truncated"));
    assert_eq!(by_name(&values, "x-auth-truncated"), None);
}

proptest! {
    #[test]
    fn all_values_together_are_bounded_and_no_restriction_is_omitted(
        lengths in proptest::collection::vec(0..6000_usize, 8),
    ) {
        let text = |place: usize| "t".repeat(lengths[place]);
        let values = values(
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
            &FieldFilter::all(),
        );
        let all: usize = values.values.iter().flatten().map(String::len).sum();
        prop_assert!(all <= MAX_VALUES + 1024, "{}", all);
        for name in ["x-auth-scopes", "x-auth-allowed-chatbots", "x-auth-allowed-agents"] {
            prop_assert!(by_name(&values, name).is_some_and(|value| value.len() <= MAX_VALUE));
        }
        let named: Vec<_> = by_name(&values, "x-auth-truncated").into_iter().flat_map(|v| v.split(',')).collect();
        for (header, value) in TABLE.iter().zip(&values.values) {
            prop_assert_eq!(value.as_deref() == Some(TRUNCATED), named.contains(&header.name));
        }
    }

    #[test]
    fn any_text_is_safe_in_a_header_and_comes_back(text in any::<String>()) {
        let Some(sent) = value("x-auth-user-name", |record| record.user.name = Some(text.clone())) else {
            prop_assert_eq!(text, "");
            return Ok(());
        };
        prop_assert!(sent.bytes().all(|byte| (0x20..=0x7e).contains(&byte)));
        prop_assert_eq!(sent.trim(), &sent);
        prop_assert_eq!(percent_decode_str(&sent).decode_utf8().expect("UTF-8"), text);
    }

    #[test]
    fn any_list_comes_back_item_by_item(items in proptest::collection::vec(any::<String>(), 1..5)) {
        let sent = value("x-auth-scopes", |record| record.scopes = items.clone()).expect("not empty");
        let back: Vec<_> = sent
            .split(',')
            .map(|item| percent_decode_str(item).decode_utf8().expect("UTF-8").into_owned())
            .collect();
        prop_assert_eq!(back, items);
    }
}
