//! The settings of a request's route: Envoy's per-route `context_extensions`.

use std::{borrow::Cow, num::NonZeroU32};

use percent_encoding::percent_decode_str;

use crate::record::path::NormalPath;

/// Settings of one route. A setting that is not present has its default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSettings {
    /// `keystile.scopes`: the scopes that the route needs, all of them.
    pub scopes: Vec<String>,
    /// `keystile.credential`: whether a request without a key may pass as anonymous.
    pub credential_optional: bool,
    /// `keystile.model`: whether the upstream enforces `allowed_models` instead of Keystile.
    pub model_ignored: bool,
    /// `keystile.mode`: whether a denial is only reported on this route. `None` means the mode of the service.
    pub shadow: Option<bool>,
    /// `keystile.cost`: how much one request counts against the limits.
    pub cost: NonZeroU32,
    /// `keystile.chatbot`: which segment of the path names the chatbot.
    pub chatbot: Option<PathSegment>,
    /// `keystile.agent`: which segment of the path names the agent.
    pub agent: Option<PathSegment>,
}

/// `segment:N`: the Nth part of the path between slashes, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathSegment(usize);

/// An invalid setting. It denies every request, because a restriction must not be ignored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("route setting {name}: {problem}")]
pub struct InvalidRouteSetting {
    name: String,
    problem: &'static str,
}

impl Default for RouteSettings {
    fn default() -> Self {
        Self {
            scopes: Vec::new(),
            credential_optional: false,
            model_ignored: false,
            shadow: None,
            cost: NonZeroU32::MIN,
            chatbot: None,
            agent: None,
        }
    }
}

impl RouteSettings {
    /// Reads the settings from the extensions. Names that do not begin with `keystile.` are ignored.
    ///
    /// # Errors
    /// [`InvalidRouteSetting`] for an unknown name or an undocumented value.
    pub fn parse<'a>(
        extensions: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, InvalidRouteSetting> {
        let mut settings = Self::default();
        for (name, value) in extensions {
            if let Some(setting) = name.strip_prefix("keystile.") {
                let taken = settings.take(setting, value);
                taken.map_err(|problem| InvalidRouteSetting {
                    name: name.chars().take(64).collect(),
                    problem,
                })?;
            }
        }
        Ok(settings)
    }

    /// Whether a request without a key may pass. It may not where scopes are needed: an anonymous caller has none.
    pub fn admits_anonymous(&self) -> bool {
        self.credential_optional && self.scopes.is_empty()
    }

    fn take(&mut self, setting: &str, value: &str) -> Result<(), &'static str> {
        match setting {
            "scopes" => self.scopes = value.split_ascii_whitespace().map(str::to_owned).collect(),
            "credential" => self.credential_optional = one_of(value, "required", "optional")?,
            "model" => self.model_ignored = one_of(value, "required", "ignore")?,
            "mode" => self.shadow = Some(one_of(value, "enforce", "shadow")?),
            "cost" => self.cost = value.parse().map_err(|_| "is not a number from 1 to 4294967295")?,
            "chatbot" => self.chatbot = Some(segment(value)?),
            "agent" => self.agent = Some(segment(value)?),
            _ => return Err("is unknown"),
        }
        Ok(())
    }
}

impl PathSegment {
    /// That segment of the path, decoded. `None` if the path has no such segment, or if servers could disagree about
    /// which segment it is.
    pub fn of(self, path: &str) -> Option<String> {
        let path = NormalPath::parse(path).ok()?;
        let segment = path.segments().nth(self.0 - 1).filter(|segment| !segment.is_empty())?;
        percent_decode_str(segment).decode_utf8().ok().map(Cow::into_owned)
    }
}

/// Whether the value is the second of the two allowed values.
fn one_of(value: &str, first: &str, second: &str) -> Result<bool, &'static str> {
    match value {
        value if value == first => Ok(false),
        value if value == second => Ok(true),
        _ => Err("has none of the documented values"),
    }
}

fn segment(value: &str) -> Result<PathSegment, &'static str> {
    let number = value.strip_prefix("segment:").and_then(|number| number.parse().ok());
    number
        .filter(|number| (1..=64).contains(number))
        .map(PathSegment)
        .ok_or("is not segment:N with N from 1 to 64")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extensions: &[(&str, &str)]) -> Result<RouteSettings, String> {
        RouteSettings::parse(extensions.iter().copied()).map_err(|error| error.to_string())
    }

    #[test]
    fn settings_are_read_and_foreign_names_are_not_ours() {
        let settings = parse(&[
            ("keystile.scopes", " chat  embed "),
            ("keystile.credential", "optional"),
            ("keystile.model", "ignore"),
            ("keystile.mode", "shadow"),
            ("keystile.cost", "5"),
            ("keystile.chatbot", "segment:2"),
            ("other.setting", "x"),
        ])
        .expect("readable");
        assert_eq!(settings.scopes, ["chat", "embed"]);
        assert!(settings.credential_optional && settings.model_ignored);
        assert_eq!((settings.shadow, settings.cost.get()), (Some(true), 5));
        assert_eq!(settings.chatbot.expect("set").of("/bots/7%20a/chat").as_deref(), Some("7 a"));
        assert_eq!(parse(&[]), Ok(RouteSettings::default()));
        assert_eq!(parse(&[("keystile.mode", "enforce")]).expect("readable").shadow, Some(false));
    }

    #[test]
    fn what_cannot_be_followed_is_named() {
        for (name, value) in [
            ("keystile.scope", "chat"),
            ("keystile.", ""),
            ("keystile.credential", "none"),
            ("keystile.model", ""),
            ("keystile.mode", "Shadow"),
            ("keystile.cost", "0"),
            ("keystile.cost", "-1"),
            ("keystile.cost", "4294967296"),
            ("keystile.chatbot", "2"),
            ("keystile.agent", "segment:0"),
        ] {
            let error = parse(&[(name, value)]).expect_err("refused");
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn segment_is_absent_where_the_path_is_shorter() {
        let third = segment("segment:3").expect("a segment");
        for path in ["", "/", "/a/b", "/a/b/", "a/b/c", "/a?b/c/d", "/a/b/../c/d", "/a/b/c%2fd"] {
            assert_eq!(third.of(path), None, "{path}");
        }
        assert_eq!(third.of("/a/b/c/d?e").as_deref(), Some("c"));
    }
}
