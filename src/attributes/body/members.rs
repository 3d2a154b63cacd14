//! Reads some members of the JSON object in a body, in one pass without building a document.

use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

/// Maximum number of entries of a list. A list with more is refused, since an entry takes more memory than its text.
const MAX_ENTRIES: usize = 64;

/// The value of a member that can name something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NameValue {
    /// `null`.
    Null,
    /// A string.
    Text(String),
    /// A whole number, as decimals.
    Number(String),
    /// A list of strings.
    List(Vec<String>),
}

/// Calls `put` for each member with one of these names, with the name's place in `names` and the member's value. There
/// are at most 32 names.
///
/// # Errors
/// If servers could read the text in two ways: it is not one JSON object, two members have one of the names, or a member
/// has it in another letter case. Or if a value can name nothing, or `put` refuses it.
pub(super) fn read<N: AsRef<str>>(
    text: &str,
    names: &[N],
    put: impl FnMut(usize, NameValue) -> Result<(), &'static str>,
) -> Result<(), serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(text);
    MemberReader { names, seen: 0, put }.deserialize(&mut json)?;
    json.end()
}

struct MemberReader<'a, N, F> {
    names: &'a [N],
    /// One bit for each name that a member had.
    seen: u32,
    put: F,
}

impl<'de, N, F> DeserializeSeed<'de> for MemberReader<'_, N, F>
where
    N: AsRef<str>,
    F: FnMut(usize, NameValue) -> Result<(), &'static str>,
{
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, N, F> Visitor<'de> for MemberReader<'_, N, F>
where
    N: AsRef<str>,
    F: FnMut(usize, NameValue) -> Result<(), &'static str>,
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(mut self, mut map: M) -> Result<(), M::Error> {
        while let Some(place) = map.next_key_seed(NameReader { names: self.names })? {
            let Some((place, spelling)) = place else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let bit = 1 << place;
            if spelling == Spelling::Folded || self.seen & bit != 0 {
                return Err(M::Error::custom("two members could have one name"));
            }
            self.seen |= bit;
            (self.put)(place, map.next_value()?).map_err(M::Error::custom)?;
        }
        Ok(())
    }
}

/// How a member's name is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    Exact,
    /// In another letter case: some upstreams (Go's encoding/json) read it as the same name.
    Folded,
}

/// Finds the name of a member among those that are read.
struct NameReader<'a, N> {
    names: &'a [N],
}

impl<'de, N: AsRef<str>> DeserializeSeed<'de> for NameReader<'_, N> {
    type Value = Option<(usize, Spelling)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<N: AsRef<str>> Visitor<'_> for NameReader<'_, N> {
    type Value = Option<(usize, Spelling)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        let mut names = self.names.iter().map(AsRef::as_ref).enumerate();
        Ok(names.find_map(|(place, known)| Some((place, spelling(name, known)?))))
    }
}

/// How `name` is written, if it is `known`. Go folds beyond ASCII: the long s is an `s`, and the Kelvin sign is a `k`.
fn spelling(name: &str, known: &str) -> Option<Spelling> {
    if name == known {
        return Some(Spelling::Exact);
    }
    let fold = |text: &str| text.to_uppercase().to_lowercase();
    let is_folded = name.eq_ignore_ascii_case(known) || (!name.is_ascii() && fold(name) == fold(known));
    is_folded.then_some(Spelling::Folded)
}

impl<'de> Deserialize<'de> for NameValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = NameValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a whole number, a list of strings or null")
    }

    fn visit_unit<E>(self) -> Result<NameValue, E> {
        Ok(NameValue::Null)
    }

    fn visit_str<E>(self, text: &str) -> Result<NameValue, E> {
        Ok(NameValue::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<NameValue, E> {
        Ok(NameValue::Text(text))
    }

    fn visit_u64<E>(self, number: u64) -> Result<NameValue, E> {
        Ok(NameValue::Number(number.to_string()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<NameValue, E> {
        Ok(NameValue::Number(number.to_string()))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<NameValue, S::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = list.next_element()? {
            if entries.len() == MAX_ENTRIES {
                return Err(S::Error::custom("a list of too many entries"));
            }
            entries.push(entry);
        }
        Ok(NameValue::List(entries))
    }
}
