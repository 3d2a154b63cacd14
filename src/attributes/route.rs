//! The settings of a request's route: Envoy's per-route `context_extensions`.

use std::num::NonZeroU32;

use super::body::ModelFields;

mod name_source;

pub use name_source::{NameSource, PathSegment, Unnamed};

/// Settings of one route. A setting that is not present has its default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSettings {
    /// `keystile.scopes`: the scopes that the route needs, all of them.
    pub scopes: Vec<String>,
    /// `keystile.credential`: whether a request without a key may pass as anonymous.
    pub credential_optional: bool,
    /// `keystile.model`: whether the upstream enforces `allowed_models` instead of Keystile.
    pub model_ignored: bool,
    /// `keystile.model_fields`: the fields of the body that name models.
    pub model_fields: ModelFields,
    /// `keystile.mode`: whether a denial is only reported on this route. `None` means the mode of the service.
    pub shadow: Option<bool>,
    /// `keystile.cost`: how much one request counts against the limits.
    pub cost: NonZeroU32,
    /// `keystile.chatbot`: where the request names the chatbot.
    pub chatbot: Option<NameSource>,
    /// `keystile.agent`: where the request names the agent.
    pub agent: Option<NameSource>,
}

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
            model_fields: ModelFields::default(),
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
            "model_fields" => self.model_fields = ModelFields::parse(value)?,
            "mode" => self.shadow = Some(one_of(value, "enforce", "shadow")?),
            "cost" => self.cost = value.parse().map_err(|_| "is not a number from 1 to 4294967295")?,
            "chatbot" => self.chatbot = Some(NameSource::parse(value)?),
            "agent" => self.agent = Some(NameSource::parse(value)?),
            _ => return Err("is unknown"),
        }
        Ok(())
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
            ("keystile.agent", "body:agent_config_id"),
            ("keystile.model_fields", "engine"),
            ("other.setting", "x"),
        ])
        .expect("readable");
        assert_eq!(settings.scopes, ["chat", "embed"]);
        assert!(settings.credential_optional && settings.model_ignored);
        assert_eq!((settings.shadow, settings.cost.get()), (Some(true), 5));
        let source = |source: Option<NameSource>| source.expect("set").to_string();
        assert_eq!(source(settings.chatbot), "segment 2 of the path");
        assert_eq!(source(settings.agent), "agent_config_id of the body");
        assert_eq!(settings.model_fields.first(), "engine");
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
            ("keystile.agent", "body:agent.id"),
            ("keystile.model_fields", ""),
            ("keystile.model_fields", "model,models,Model"),
        ] {
            let error = parse(&[(name, value)]).expect_err("refused");
            assert!(error.contains(name), "{error}");
        }
    }
}
