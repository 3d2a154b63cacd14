//! `keystile.chatbot` and `keystile.agent`: where a request names its chatbot or agent.

use std::{borrow::Cow, fmt};

use percent_encoding::percent_decode_str;

use crate::{
    attributes::body::{Body, NoName, is_field_name},
    record::path::NormalPath,
};

/// The part of a request that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameSource {
    /// `segment:N`.
    Segment(PathSegment),
    /// `body:FIELD`: a top-level member of the JSON body.
    BodyField(Box<str>),
}

/// The Nth part of the path between slashes, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathSegment(usize);

/// Why a request has no name there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unnamed {
    /// The path has no such segment, or servers could disagree about which segment it is.
    #[error("the path has no such segment that every server reads alike")]
    Path,
    /// The body has none.
    #[error(transparent)]
    Body(#[from] NoName),
}

impl NameSource {
    /// Parses the value of a setting.
    ///
    /// # Errors
    /// When it has neither form.
    pub(super) fn parse(value: &str) -> Result<Self, &'static str> {
        let source = match value.split_once(':') {
            Some(("segment", number)) => segment(number).map(Self::Segment),
            Some(("body", field)) => is_field_name(field).then(|| Self::BodyField(field.into())),
            _ => None,
        };
        source.ok_or("is neither segment:N with N from 1 to 64 nor body:FIELD")
    }

    /// The name in a request with this path and body.
    ///
    /// # Errors
    /// [`Unnamed`] if there is none, or if servers could read different names.
    pub fn find(&self, path: &str, body: &Body<'_>) -> Result<String, Unnamed> {
        match self {
            Self::Segment(segment) => segment.of(path).ok_or(Unnamed::Path),
            Self::BodyField(field) => Ok(body.name(field)?),
        }
    }
}

impl PathSegment {
    /// That segment of the path, decoded. `None` if the path has no such segment, or if servers could disagree about
    /// which segment it is.
    fn of(self, path: &str) -> Option<String> {
        let path = NormalPath::parse(path).ok()?;
        let segment = path.segments().nth(self.0 - 1).filter(|segment| !segment.is_empty())?;
        percent_decode_str(segment).decode_utf8().ok().map(Cow::into_owned)
    }
}

impl fmt::Display for NameSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(PathSegment(number)) => write!(f, "segment {number} of the path"),
            Self::BodyField(field) => write!(f, "{field} of the body"),
        }
    }
}

fn segment(number: &str) -> Option<PathSegment> {
    number.parse().ok().filter(|number| (1..=64).contains(number)).map(PathSegment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(source: &str, path: &str, body: &str) -> Option<String> {
        let body = if body.is_empty() { Body::Absent } else { Body::Whole(body.as_bytes().into()) };
        NameSource::parse(source).expect(source).find(path, &body).ok()
    }

    #[test]
    fn segment_is_absent_where_the_path_is_shorter() {
        for path in ["", "/", "/a/b", "/a/b/", "a/b/c", "/a?b/c/d", "/a/b/../c/d", "/a/b/c%2fd"] {
            assert_eq!(find("segment:3", path, ""), None, "{path}");
        }
        assert_eq!(find("segment:3", "/a/b/c/d?e", "").as_deref(), Some("c"));
        assert_eq!(find("segment:2", "/bots/7%20a/chat", "").as_deref(), Some("7 a"));
    }

    #[test]
    fn field_of_the_body_is_found_there_alone() {
        let body = r#"{"agent_config_id": 7, "agent": {"id": 8}}"#;
        assert_eq!(find("body:agent_config_id", "/v1/agents/9", body).as_deref(), Some("7"));
        assert_eq!(find("body:id", "/v1/agents/9", body), None);
        assert_eq!(find("body:agent", "/v1/agents/9", body), None);
        assert_eq!(find("body:agent_config_id", "/v1/agents/9", ""), None);
    }

    #[test]
    fn other_forms_are_refused() {
        for bad in [
            "",
            "2",
            "segment:0",
            "segment:65",
            "segment:-1",
            "segment:",
            "body:",
            "body:a.b",
            "body:a b",
            "Body:a",
            "header:a",
            "body",
        ] {
            assert!(NameSource::parse(bad).is_err(), "{bad}");
        }
    }
}
