//! A JSON object in which no member is there twice.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};

/// Reads one. Of two members with the same name, readers believe different ones.
///
/// # Errors
/// A sentence that repeats no value.
pub(super) fn object(text: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice::<Object>(text) {
        Ok(Object(members)) => Ok(members),
        Err(error) if error.is_data() => Err(error.to_string()),
        Err(error) => Err(format!("is not JSON (line {}, column {})", error.line(), error.column())),
    }
}

struct Object(Map<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if members.contains_key(&name) {
                return Err(A::Error::custom(format_args!("the member {name} is there twice")));
            }
            members.insert(name, map.next_value()?);
        }
        Ok(Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_object_with_distinct_members_is_read() {
        assert!(object(br#"{"a": {"b": 1}, "c": null}"#).is_ok());
        for (bad, words) in [
            (&br#"{"a": 1, "a": 2}"#[..], "a is there twice"),
            (b"[]", "a JSON object"),
            (b"\"secret\"", "a JSON object"),
            (b"{\"a\": ", "not JSON"),
            (b"", "not JSON"),
        ] {
            let error = object(bad).expect_err("refused");
            assert!(error.contains(words), "{error}");
        }
    }
}
