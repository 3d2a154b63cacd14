//! The model in a JSON body, read in one pass without building a document.

use std::{borrow::Cow, fmt};

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

/// The body of a request, as Envoy sent it with the check.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Body<'a> {
    /// Envoy sent no body: the request has none, or the route does not send it.
    #[default]
    Absent,
    /// Envoy sent only the beginning, or the body is not plain JSON in UTF-8.
    Unreadable,
    /// The whole body.
    Whole(Cow<'a, [u8]>),
}

/// No model can be read from the body with certainty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoModel {
    /// There is no body.
    #[error("Envoy sent no body with the check")]
    Absent,
    /// There is a body, but it cannot be read.
    #[error("the body is partial, or not plain JSON in UTF-8")]
    Unreadable,
    /// The body is not one JSON object with one `model` that is a string.
    #[error("the body is not a JSON object with one \"model\", a string")]
    NotOne,
}

impl Body<'_> {
    /// The value of `model` in the top-level object.
    ///
    /// # Errors
    /// [`NoModel`] if an upstream could read another model than Keystile: no object, no string, two members of that
    /// name, bytes after the object, a byte order mark, bytes that are not UTF-8.
    pub fn model(&self) -> Result<String, NoModel> {
        match self {
            Self::Absent => Err(NoModel::Absent),
            Self::Unreadable => Err(NoModel::Unreadable),
            Self::Whole(bytes) => {
                // serde_json does not decode text that it skips, and parsers disagree about where a string with bytes
                // that are not UTF-8 ends.
                let text = std::str::from_utf8(bytes).map_err(|_| NoModel::NotOne)?;
                let Model(model) = serde_json::from_str(text).map_err(|_| NoModel::NotOne)?;
                Ok(model)
            }
        }
    }
}

impl fmt::Debug for Body<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("Absent"),
            Self::Unreadable => f.write_str("Unreadable"),
            Self::Whole(bytes) => write!(f, "Whole({} bytes)", bytes.len()),
        }
    }
}

struct Model(String);

impl<'de> Deserialize<'de> for Model {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ModelVisitor)
    }
}

struct ModelVisitor;

impl<'de> Visitor<'de> for ModelVisitor {
    type Value = Model;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one \"model\"")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Model, M::Error> {
        let mut model = None;
        while let Some(name) = map.next_key::<Name>()? {
            match (name, &model) {
                (Name::Other, _) => drop(map.next_value::<IgnoredAny>()?),
                (Name::Exact, None) => model = Some(map.next_value()?),
                (Name::Exact | Name::Folded, _) => return Err(M::Error::custom("two members named model")),
            }
        }
        model.map(Model).ok_or_else(|| M::Error::missing_field("model"))
    }
}

/// The name of a member.
enum Name {
    Exact,
    /// Other letter case, such as `Model`: some upstreams (Go's encoding/json) read it as `model`.
    Folded,
    Other,
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(NameVisitor)
    }
}

struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Name, E> {
        match name {
            "model" => Ok(Name::Exact),
            name if name.eq_ignore_ascii_case("model") => Ok(Name::Folded),
            _ => Ok(Name::Other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn model(body: impl AsRef<[u8]>) -> Result<String, NoModel> {
        Body::Whole(body.as_ref().into()).model()
    }

    #[test]
    fn one_model_is_read() {
        for body in [
            r#"{"model":"gpt-4o"}"#,
            r#" {"messages":[{"model":"x"}],"model":"gpt-4o","stream":true} "#,
            r#"{"mod\u0065l":"gpt\u002d4o"}"#,
            r#"{"a":1,"a":2,"model":"gpt-4o"}"#,
        ] {
            assert_eq!(model(body).as_deref(), Ok("gpt-4o"), "{body}");
        }
    }

    #[test]
    fn what_an_upstream_could_read_differently_is_refused() {
        for body in [
            "",
            "null",
            "[]",
            r#"[{"model":"gpt-4o"}]"#,
            r#""model""#,
            "{}",
            r#"{"Model":"gpt-4o"}"#,
            r#"{"model":null}"#,
            r#"{"model":["gpt-4o"]}"#,
            r#"{"model":4}"#,
            r#"{"model":"gpt-4o","model":"gpt-4o"}"#,
            r#"{"model":"gpt-4o","mod\u0065l":"o1"}"#,
            r#"{"model":"gpt-4o","MODEL":"o1"}"#,
            r#"{"MODEL":"o1","model":"gpt-4o"}"#,
            r#"{"model":"gpt-4o"}{"model":"o1"}"#,
            r#"{"model":"gpt-4o"} x"#,
            r#"{"model":"gpt-4o",}"#,
            r#"{"model":"gpt-4o""#,
            r#"{'model':'gpt-4o'}"#,
            "\u{feff}{\"model\":\"gpt-4o\"}",
            "{\"model\":\"gpt\n4o\"}",
        ] {
            assert_eq!(model(body), Err(NoModel::NotOne), "{body}");
        }
        let utf16: Vec<u8> = r#"{"model":"gpt-4o"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(model(utf16), Err(NoModel::NotOne));
        assert_eq!(model(b"{\"model\":\"gpt\xff\"}"), Err(NoModel::NotOne));
        assert_eq!(model(b"{\"model\":\"gpt-4o\",\"a\":\"\xff\"}"), Err(NoModel::NotOne));
        assert_eq!(
            model(format!("{}1{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000))),
            Err(NoModel::NotOne)
        );
        assert_eq!(Body::Absent.model(), Err(NoModel::Absent));
        assert_eq!(Body::Unreadable.model(), Err(NoModel::Unreadable));
    }

    proptest! {
        #[test]
        fn agrees_with_a_whole_document(names in proptest::collection::vec("model|Model|a|b", 0..5), values in proptest::collection::vec("\"[a-z]{0,3}\"|1|null|\\[\\]|\\{\"model\":\"x\"\\}", 5)) {
            let members: Vec<_> = names.iter().zip(&values).map(|(name, value)| format!("\"{name}\":{value}")).collect();
            let body = format!("{{{}}}", members.join(","));
            let named = |wanted: &str| names.iter().zip(&values).filter(|(name, _)| *name == wanted).map(|(_, value)| value.clone()).collect::<Vec<_>>();
            let expected = match (named("model").as_slice(), named("Model").as_slice()) {
                ([value], []) => serde_json::from_str(value).map_err(|_| NoModel::NotOne),
                _ => Err(NoModel::NotOne),
            };
            prop_assert_eq!(model(&body), expected, "{}", body);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(model) = model(&bytes) {
                let whole: serde_json::Value = serde_json::from_slice(&bytes).expect("it was JSON");
                prop_assert_eq!(whole["model"].as_str(), Some(&*model));
            }
        }
    }
}
