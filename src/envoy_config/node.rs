//! A value of a document with its path, read as Envoy reads it.

use std::time::Duration;

use serde_json::Value;

/// Maximum number of characters of a name in a path.
const MAX_NAME: usize = 60;

/// A value with its path.
#[derive(Debug, Clone)]
pub(super) struct Node<'a> {
    value: &'a Value,
    pub(super) path: String,
}

impl<'a> Node<'a> {
    pub(super) fn root(value: &'a Value) -> Self {
        Self { value, path: String::new() }
    }

    /// A field of a message. Envoy takes its name in `snake_case` and in lowerCamelCase. A null is absent.
    pub(super) fn field(&self, name: &str) -> Option<Self> {
        let value = self.value.get(name).or_else(|| self.value.get(lower_camel(name)))?;
        (!value.is_null()).then(|| Self { value, path: self.below(name) })
    }

    /// A field of a field, and so on.
    pub(super) fn at(&self, names: &[&str]) -> Option<Self> {
        names.iter().try_fold(self.clone(), |node, name| node.field(name))
    }

    /// The entries of a map, whose keys are no names of fields.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, Self)> {
        let map = self.value.as_object().into_iter().flatten();
        map.map(|(name, value)| {
            let path = format!("{}[{}]", self.path, shown(name));
            (name.as_str(), Self { value, path })
        })
    }

    /// The elements of a list in this field. In a path, an element is known by its name, where it has one.
    pub(super) fn items(&self, name: &str) -> Vec<Self> {
        let Some(list) = self.field(name) else { return Vec::new() };
        let values = list.value.as_array().into_iter().flatten();
        let items = values.enumerate().map(|(at, value)| {
            let place = name_of(value).map_or_else(|| at.to_string(), shown);
            Self { value, path: format!("{}[{place}]", list.path) }
        });
        items.collect()
    }

    /// The texts of a list in this field.
    pub(super) fn texts(&self, name: &str) -> Vec<String> {
        let Some(list) = self.field(name) else { return Vec::new() };
        let values = list.value.as_array().into_iter().flatten();
        values.filter_map(|text| text.as_str().map(str::to_owned)).collect()
    }

    /// All values in this one, of a map or a list.
    pub(super) fn children(&self) -> Vec<Self> {
        let list = self.value.as_array().into_iter().flatten().enumerate();
        let list = list.map(|(at, value)| Self { value, path: format!("{}[{at}]", self.path) });
        self.fields().chain(list).collect()
    }

    fn fields(&self) -> impl Iterator<Item = Self> {
        let map = self.value.as_object().into_iter().flatten();
        map.map(|(name, value)| Self { value, path: self.below(&shown(name)) })
    }

    /// This value, if it is a text.
    pub(super) fn as_text(&self) -> Option<&'a str> {
        self.value.as_str()
    }

    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        self.field(name)?.as_text().filter(|text| !text.is_empty())
    }

    /// A boolean that is false by default. Envoy's YAML also takes `yes` and `on` for true.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.field(name).is_some_and(|node| match node.value {
            Value::Bool(flag) => *flag,
            Value::String(text) => {
                ["true", "yes", "on", "y"].iter().any(|word| text.eq_ignore_ascii_case(word))
            }
            _ => false,
        })
    }

    /// A number, which JSON may also have as a text.
    pub(super) fn number(&self, name: &str) -> Option<f64> {
        match self.field(name)?.value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// A value of an enumeration, by name or number, as the place in its names. The first is the default.
    pub(super) fn choice(&self, name: &str, values: &[&str]) -> usize {
        let by_name = self.text(name).and_then(|text| values.iter().position(|value| *value == text));
        let number = self.field(name).and_then(|field| field.value.as_u64());
        let by_number = number.and_then(|number| usize::try_from(number).ok());
        by_name.or(by_number).filter(|place| *place < values.len()).unwrap_or(0)
    }

    /// A duration such as `0.25s`.
    pub(super) fn duration(&self, name: &str) -> Option<Duration> {
        let seconds = self.text(name)?.strip_suffix('s')?.parse().ok()?;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// The message in an `Any` with the full name of its type. A `TypedStruct` is taken for the message in it.
    pub(super) fn any(&self) -> Option<(&'a str, Self)> {
        let kind = self.value.get("@type")?.as_str()?;
        let kind = short(kind);
        if !kind.ends_with(".TypedStruct") {
            return Some((kind, self.clone()));
        }
        Some((short(self.text("type_url")?), self.field("value")?))
    }

    fn below(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

/// The name of an element of a list. In a dump it is the name of the resource inside.
fn name_of(value: &Value) -> Option<&str> {
    let inside = ["listener", "cluster", "route_config"].iter().find_map(|resource| value.get(resource));
    let name = value.get("name").or_else(|| inside?.get("name"))?.as_str()?;
    (!name.is_empty()).then_some(name)
}

/// A name as paths and messages have it: not too long, and without characters that control a terminal.
pub(super) fn shown(name: &str) -> String {
    let is_harmless = |letter: char| {
        !letter.is_control()
            && !matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let letters = name.chars().map(|letter| if is_harmless(letter) { letter } else { '\u{fffd}' });
    let short: String = letters.take(MAX_NAME).collect();
    if name.chars().nth(MAX_NAME).is_some() { short + "…" } else { short }
}

/// The name of a type without the host before it.
fn short(kind: &str) -> &str {
    kind.rsplit('/').next().unwrap_or(kind)
}

fn lower_camel(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |camel, word| {
        let mut letters = word.chars();
        let head = letters.next().map(|letter| letter.to_ascii_uppercase());
        camel + &head.into_iter().chain(letters).collect::<String>()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_found_in_both_spellings_and_null_is_absent() {
        let value = json!({ "http_filters": [{ "name": "a" }, {}], "failureModeAllow": "on", "x": null });
        let node = Node::root(&value);
        let paths: Vec<_> = node.items("http_filters").into_iter().map(|item| item.path).collect();
        assert_eq!(paths, ["http_filters[a]", "http_filters[1]"]);
        assert!(node.flag("failure_mode_allow"));
        assert!(node.field("x").is_none() && !node.flag("x"));
    }

    #[test]
    fn values_are_read_as_envoy_reads_them() {
        let value = json!({ "a": "0.25s", "b": "1024", "c": 7, "d": "2", "e": "-1s", "f": "NaNs" });
        let node = Node::root(&value);
        assert_eq!(node.duration("a"), Some(Duration::from_millis(250)));
        assert_eq!((node.number("b"), node.number("c")), (Some(1024.0), Some(7.0)));
        let names = ["X", "Y", "Z"];
        let value = json!({ "a": "Y", "b": 2, "c": "other", "d": 9 });
        let places = ["a", "b", "c", "d", "e"].map(|name| Node::root(&value).choice(name, &names));
        assert_eq!(places, [1, 2, 0, 0, 0]);
        assert_eq!([node.duration("d"), node.duration("e"), node.duration("f")], [None; 3]);
    }

    #[test]
    fn typed_struct_is_the_message_in_it() {
        let value = json!({
            "@type": "type.googleapis.com/xds.type.v3.TypedStruct",
            "type_url": "type.googleapis.com/a.B",
            "value": { "c": true },
        });
        let (kind, node) = Node::root(&value).any().expect("a message");
        assert_eq!(kind, "a.B");
        assert!(node.flag("c"));
    }

    #[test]
    fn names_cannot_control_a_terminal() {
        assert_eq!(shown("a\u{1b}[31m\n\u{202e}b"), "a\u{fffd}[31m\u{fffd}\u{fffd}b");
        assert_eq!(shown(&"x".repeat(99)).chars().count(), MAX_NAME + 1);
    }
}
