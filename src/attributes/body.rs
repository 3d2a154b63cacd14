//! Names in a JSON body: the models, the chatbot, the agent.

use std::{borrow::Cow, fmt, iter};

mod members;
mod model_fields;

use members::NameValue;
pub use model_fields::{ModelFields, is_field_name};

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

/// The models that a body names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Models {
    model: String,
    further: Vec<String>,
}

/// No name can be read from the body with certainty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoName {
    /// There is no body.
    #[error("Envoy sent no body with the check")]
    Absent,
    /// There is a body, but it cannot be read.
    #[error("the body is partial, or not plain JSON in UTF-8")]
    Unreadable,
    /// The body is not one JSON object that names it.
    #[error("the body is not a JSON object that names it once, in a form that every server reads alike")]
    Unclear,
}

impl Models {
    /// Each model that the request may be served with.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        iter::once(&self.model).chain(&self.further).map(String::as_str)
    }
}

impl Body<'_> {
    /// The models in these fields of the top-level object. The first field holds one model. The others may be absent,
    /// `null`, a model or a list of models.
    ///
    /// # Errors
    /// [`NoName`] if an upstream could read another model than Keystile: no object, another value, two members of one
    /// name, bytes after the object, a byte order mark, bytes that are not UTF-8.
    pub fn models(&self, fields: &ModelFields) -> Result<Models, NoName> {
        match fields.custom() {
            None => self.models_in(&model_fields::DEFAULT),
            Some(fields) => self.models_in(fields),
        }
    }

    /// The text or whole number in this field of the top-level object.
    ///
    /// # Errors
    /// [`NoName`] as for [`Body::models`].
    pub fn name(&self, field: &str) -> Result<String, NoName> {
        let mut found = None;
        let read = members::read(self.text()?, &[field], |_, value| match value {
            NameValue::Text(name) | NameValue::Number(name) if !name.is_empty() => {
                found = Some(name);
                Ok(())
            }
            _ => Err("no name"),
        });
        read.ok().and(found).ok_or(NoName::Unclear)
    }

    fn models_in<N: AsRef<str>>(&self, fields: &[N]) -> Result<Models, NoName> {
        let (mut model, mut further) = (None, Vec::new());
        let read = members::read(self.text()?, fields, |place, value| {
            match (place, value) {
                (0, NameValue::Text(name)) => model = Some(name),
                (1.., NameValue::Null) => {}
                (1.., NameValue::Text(name)) => further.push(name),
                (1.., NameValue::List(names)) => further.extend(names),
                _ => return Err("no models"),
            }
            Ok(())
        });
        let model = read.ok().and(model).ok_or(NoName::Unclear)?;
        Ok(Models { model, further })
    }

    /// serde_json does not decode text that it skips, and parsers disagree about where a string with bytes that are not
    /// UTF-8 ends. So the whole body must be UTF-8.
    fn text(&self) -> Result<&str, NoName> {
        match self {
            Self::Absent => Err(NoName::Absent),
            Self::Unreadable => Err(NoName::Unreadable),
            Self::Whole(bytes) => std::str::from_utf8(bytes).map_err(|_| NoName::Unclear),
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

#[cfg(test)]
mod tests;
