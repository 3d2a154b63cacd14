//! A model that is read from a body is the one that a whole JSON document has.

#![no_main]

use keystile::attributes::body::Body;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// Why a whole document may be refused whose model is read all the same: members that nobody
/// here looks at are skipped, not understood.
const NOT_UNDERSTOOD: [&str; 5] = [
    "number out of range",
    "recursion limit exceeded",
    "lone leading surrogate in hex escape",
    "unexpected end of hex escape",
    "invalid unicode code point",
];

fuzz_target!(|bytes: &[u8]| {
    let Ok(model) = Body::Whole(bytes.into()).model() else { return };
    let text = std::str::from_utf8(bytes).expect("UTF-8");
    match serde_json::from_str::<Value>(text) {
        Ok(document) => {
            let members = document.as_object().expect("an object");
            assert_eq!(members.get("model").and_then(Value::as_str), Some(&*model));
            assert_eq!(members.keys().filter(|name| name.eq_ignore_ascii_case("model")).count(), 1);
        }
        Err(error) => {
            let error = error.to_string();
            assert!(NOT_UNDERSTOOD.iter().any(|known| error.starts_with(known)), "{error}");
        }
    }
});
