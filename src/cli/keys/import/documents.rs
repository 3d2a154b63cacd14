//! Exports as JSON values, whatever their notation. Errors have a place and no content.

use anyhow::{anyhow, bail};
use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::record::rfc3339;

pub(super) type Object = Map<String, Value>;

/// The documents of a text: several JSON values after each other, or YAML.
pub(super) fn parse(text: &str) -> anyhow::Result<Vec<Value>> {
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.is_empty() {
        bail!("it is empty");
    }
    if text.starts_with(['{', '[']) { json(text) } else { yaml(text) }
}

/// Several JSON values after each other, such as the pages of an API, or lines.
pub(super) fn json(text: &str) -> anyhow::Result<Vec<Value>> {
    let values = serde_json::Deserializer::from_str(text.trim_start_matches('\u{feff}')).into_iter();
    let values = values.collect::<Result<Vec<Value>, _>>();
    values.map_err(|error| anyhow!("line {}, column {}: it is no JSON", error.line(), error.column()))
}

/// The bounds of a document follow from its length, since an export may have many thousands of keys. Those of aliases stay as
/// they are.
fn yaml(text: &str) -> anyhow::Result<Vec<Value>> {
    let most = text.len().saturating_add(1000);
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_events: most, max_nodes: most, max_total_scalar_bytes: most },
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| match error.location() {
        Some(place) => anyhow!("line {}, column {}: it is no YAML", place.line(), place.column()),
        None => anyhow!("it is no YAML"),
    })
}

/// A text. A number is not taken for one: as a number it may have lost zeros.
pub(super) fn text<'a>(object: &'a Object, name: &str) -> Result<Option<&'a str>, String> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Number(_) | Value::Bool(_)) => {
            Err(format!("{name} is a number or a boolean in this file; put it in quotes, as it was issued"))
        }
        Some(_) => Err(format!("{name} is no text")),
    }
}

/// A list of texts.
pub(super) fn texts(object: &Object, name: &str) -> Result<Vec<String>, String> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => {
            let texts = list.iter().map(|entry| entry.as_str().map(str::to_owned));
            texts.collect::<Option<_>>().ok_or_else(|| format!("{name} is no list of texts"))
        }
        Some(_) => Err(format!("{name} is no list of texts")),
    }
}

/// The objects of a list. Empty where there is none.
pub(super) fn objects<'a>(object: &'a Object, name: &str) -> impl Iterator<Item = &'a Object> {
    let list = object.get(name).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_object)
}

/// Whether a value says something.
pub(super) fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Number(_) => true,
    }
}

/// The fields of an object that are set and not among these.
pub(super) fn others<'a>(object: &'a Object, known: &[&str]) -> impl Iterator<Item = &'a str> {
    let is_other = |(name, value): &(&'a String, &'a Value)| !known.contains(&name.as_str()) && is_set(value);
    object.iter().filter(is_other).map(|(name, _)| name.as_str())
}

/// A point in time, from a number of this many to a second since 1970.
pub(super) fn instant(value: &Value, per_second: f64) -> Option<String> {
    let seconds = value.as_f64()? / per_second;
    let nanos = (seconds * 1e6).round() * 1e3;
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos as i128).ok()?;
    (1970..=9999).contains(&time.year()).then(|| rfc3339(time))
}
