//! A header for JSON is one that a plain reading takes for JSON in UTF-8. The input is the header's values, a line each.

use keystile::attributes::media_type::{is_coded_as, is_json_in_utf8};

/// Fails if a fact does not hold for this input.
pub fn check(input: &[u8]) {
    let values: Vec<_> = input.split(|byte| *byte == b'\n').collect();
    let is_json = is_json_in_utf8(values.iter().copied());
    assert!(is_json_in_utf8([]) && is_coded_as("identity", []), "no header says nothing");
    if values.len() > 1 {
        assert!(!is_json, "a server may read any of several");
        return;
    }
    let Ok(text) = std::str::from_utf8(values[0]) else {
        assert!(!is_json);
        return;
    };
    assert_eq!(is_coded_as("identity", [values[0]]), text.eq_ignore_ascii_case("identity"));
    if is_json {
        let lower = text.to_ascii_lowercase();
        assert!(lower.contains("json") && text.is_ascii(), "{text:?}");
        assert!(lower.starts_with("application/") || lower.starts_with("text/json"), "{text:?}");
        for other in ["utf-16", "utf-7", "latin1", "x-www-form-urlencoded", "multipart", ","] {
            let charset = format!("charset={other}");
            assert!(!lower.contains(&charset) && !lower.starts_with(other), "{text:?}");
        }
    }
}
