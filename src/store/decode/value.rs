//! Decodes single values. A database returns every value as text.

use std::{fmt::Display, str::FromStr};

use crate::record::AllowList;

/// What a value should have been, and never what it was: a value may be a secret.
pub(crate) type Expectation = &'static str;

/// `true` and `t` from Postgres, `1` from SQLite and from columns of numbers.
pub(crate) fn boolean(text: &str) -> Result<bool, Expectation> {
    match integer(text) {
        Ok(1) => Ok(true),
        Ok(0) => Ok(false),
        _ if text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("t") => Ok(true),
        _ if text.eq_ignore_ascii_case("false") || text.eq_ignore_ascii_case("f") => Ok(false),
        _ => Err("true or false"),
    }
}

/// A whole number. A fraction of zeros is accepted, since a `numeric` column may return one.
pub(crate) fn integer(text: &str) -> Result<i64, Expectation> {
    let whole = match text.split_once('.') {
        Some((whole, zeros)) if !zeros.is_empty() && zeros.bytes().all(|digit| digit == b'0') => whole,
        _ => text,
    };
    whole.parse().map_err(|_| "a whole number")
}

/// A whole number that is not negative.
pub(crate) fn count(text: &str) -> Result<u64, Expectation> {
    integer(text).ok().and_then(|number| number.try_into().ok()).ok_or("a whole number from 0")
}

/// A finite number: a budget cannot be compared with infinity or NaN.
pub(crate) fn number(text: &str) -> Result<f64, Expectation> {
    text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or("a number")
}

/// Any JSON. `null` is none.
pub(crate) fn json(text: &str) -> Result<Option<serde_json::Value>, Expectation> {
    match serde_json::from_str(text) {
        Ok(serde_json::Value::Null) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err("JSON"),
    }
}

/// A JSON list of strings. `null` is the empty list.
pub(crate) fn list(text: &str) -> Result<Vec<String>, Expectation> {
    let list: Result<Option<Vec<String>>, _> = serde_json::from_str(text);
    list.map(Option::unwrap_or_default).map_err(|_| "a JSON list of strings, such as [\"chat\"]")
}

/// A name: a text, or a number that is an id.
#[derive(Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(untagged)]
enum NameOrId {
    Text(String),
    Positive(u64),
    Negative(i64),
}

/// A JSON list of names, with numbers as decimals. `null` is the empty list.
pub(crate) fn names(text: &str) -> Result<Vec<String>, Expectation> {
    let list: Result<Option<Vec<NameOrId>>, _> = serde_json::from_str(text);
    let names = list.map_err(|_| "a JSON list of texts and whole numbers, such as [\"chat\", 7]")?;
    let decimal = |name| match name {
        NameOrId::Text(text) => text,
        NameOrId::Positive(id) => id.to_string(),
        NameOrId::Negative(id) => id.to_string(),
    };
    Ok(names.unwrap_or_default().into_iter().map(decimal).collect())
}

/// A list of restrictions, from its JSON. NULL and the empty list are no restriction. A value that is no list, or has an
/// invalid entry, allows nothing.
pub fn allow_list<T: FromStr>(json: Option<&str>) -> AllowList<T> {
    allow(json, list)
}

/// The same for a list of names.
pub(crate) fn allowed_names(json: Option<&str>) -> AllowList<String> {
    allow(json, names)
}

fn allow<T: FromStr>(
    json: Option<&str>,
    read: impl FnOnce(&str) -> Result<Vec<String>, Expectation>,
) -> AllowList<T> {
    let Ok(entries) = json.map_or_else(|| Ok(Vec::new()), read) else { return AllowList::Unreadable };
    let entries: Result<Vec<_>, _> = entries.iter().map(|entry| entry.parse()).collect();
    match entries {
        Ok(entries) if entries.is_empty() => AllowList::Any,
        Ok(entries) => AllowList::Only(entries),
        Err(_) => AllowList::Unreadable,
    }
}

/// Why [`allow_list`] or [`allowed_names`] cannot read a list: the entry that is not valid, or the form of the whole.
pub(crate) fn list_problem<T: FromStr<Err: Display>>(
    json: Option<&str>,
    read: impl FnOnce(&str) -> Result<Vec<String>, Expectation>,
) -> String {
    let entries = match json.map_or_else(|| Ok(Vec::new()), read) {
        Ok(entries) => entries,
        Err(expected) => return format!("is not {expected}"),
    };
    let invalid = entries.iter().find_map(|entry| Some((entry, entry.parse::<T>().err()?)));
    invalid.map_or_else(String::new, |(entry, error)| format!("has the entry {entry:?}, which {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::network::Network;

    #[test]
    fn numbers_in_a_list_of_names_are_ids() {
        assert_eq!(
            names(r#"["a", 7, -1, 18446744073709551615, "8"]"#).map(|names| names.join(" ")),
            Ok("a 7 -1 18446744073709551615 8".into())
        );
        assert_eq!((names("null"), names("[]")), (Ok(vec![]), Ok(vec![])));
        for bad in
            ["", "7", "[7.5]", "[7.0]", "[null]", "[true]", "[[7]]", "[18446744073709551616]", r#"{"7": 7}"#]
        {
            assert!(names(bad).is_err(), "{bad}");
            assert_eq!(allowed_names(Some(bad)), AllowList::Unreadable, "{bad}");
        }
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
        assert_eq!((boolean("1.00"), boolean("0.0")), (Ok(true), Ok(false)));
        assert!(["yes", "2", "-1", "0.5", ""].iter().all(|text| boolean(text).is_err()));
    }
}
