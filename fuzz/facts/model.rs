//! Models that are read from a body are those that a whole JSON document has.

use keystile::attributes::body::{Body, ModelFields};
use serde_json::Value;

/// Reasons why `serde_json` may refuse a document from which Keystile reads the models: Keystile skips the members that it
/// does not need, without checking them.
const NOT_UNDERSTOOD: [&str; 5] = [
    "number out of range",
    "recursion limit exceeded",
    "lone leading surrogate in hex escape",
    "unexpected end of hex escape",
    "invalid unicode code point",
];

/// Fails if a fact does not hold for this input.
pub fn check(bytes: &[u8]) {
    let Ok(models) = Body::Whole(bytes.into()).models(&ModelFields::default()) else { return };
    let text = std::str::from_utf8(bytes).expect("UTF-8");
    match serde_json::from_str::<Value>(text) {
        Ok(document) => {
            let members = document.as_object().expect("an object");
            let fields = ["model", "models", "fallbacks"];
            let read: Vec<_> = models.iter().collect();
            assert_eq!(members.get("model").and_then(Value::as_str), Some(read[0]));
            for name in members.keys() {
                assert!(
                    fields.iter().all(|field| name == field || !name.eq_ignore_ascii_case(field)),
                    "{name}"
                );
            }
            for further in fields[1..].iter().filter_map(|field| members.get(*field)) {
                let mut entries = further
                    .as_array()
                    .into_iter()
                    .flatten()
                    .chain([further].into_iter().filter(|value| value.is_string()));
                assert!(further.is_null() || further.is_string() || further.is_array(), "{further}");
                assert!(
                    entries.all(|entry| read[1..].contains(&entry.as_str().expect("a name"))),
                    "{further}"
                );
            }
        }
        Err(error) => {
            let error = error.to_string();
            assert!(NOT_UNDERSTOOD.iter().any(|known| error.starts_with(known)), "{error}");
        }
    }
}
