//! A line of an import is read or refused by the column's rule, and an error repeats no value. The input is a line of JSON.

use keystile::{record::KeyHash, store::ImportRow};
use serde_json::{Map, Value};

/// Fails if a fact does not hold for this input.
pub fn check(text: &str) {
    let Ok(object) = serde_json::from_str::<Map<String, Value>>(text) else { return };
    let texts = object.iter().filter_map(|(name, value)| match value {
        Value::Null => None,
        Value::String(text) => Some((name.clone(), text.clone())),
        other => Some((name.clone(), other.to_string())),
    });
    let fields: Vec<(String, String)> = texts.collect();
    let has = |column: &str| fields.iter().find(|(name, _)| name == column).map(|(_, text)| text.as_str());
    let row = ImportRow::parse(1, fields.clone());
    let error = match row {
        Ok(_) => {
            assert!(fields.iter().all(|(name, _)| ImportRow::knows(name)), "unknown columns are refused");
            let hash = has("key_hash").expect("required").trim();
            assert!(hash.parse::<KeyHash>().is_ok(), "a hash that no key could be proven against");
            let prefix = has("key_prefix").expect("required").trim();
            assert_eq!(prefix.len(), 8, "{prefix:?} finds no record");
            assert!(has("user_id").is_some() || has("user_email").is_some(), "a key has a user");
            return;
        }
        Err(error) => error,
    };
    for (name, value) in fields.iter().filter(|(_, value)| value.len() >= 8 && !is_of_the_rules(value)) {
        assert!(!error.contains(value.as_str()), "{name}: {error}");
    }
    // Read again, it is refused for the same reason.
    assert_eq!(ImportRow::parse(2, fields).map(drop), Err(error));
}

/// Whether a value is a word that errors use, such as the name of a column or the example of a list.
fn is_of_the_rules(value: &str) -> bool {
    r#"["10.0.0.0/8"]"#.contains(value)
        || value.bytes().all(|byte| byte.is_ascii_lowercase() || b"_ ,".contains(&byte))
}
