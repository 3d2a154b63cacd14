//! Entries of `allowed_models`: a name, or a prefix of names followed by `*`.

use std::{fmt, str::FromStr};

/// A pattern of models. It is displayed as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelPattern(String);

/// The text is not a pattern of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a model such as `gpt-4o` or `claude-*`; `*` may stand only at the end")]
pub struct NotAModel;

impl ModelPattern {
    /// Whether the pattern matches this model.
    pub fn matches(&self, model: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => model.starts_with(beginning),
            None => self.0 == model,
        }
    }
}

impl fmt::Display for ModelPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ModelPattern {
    type Err = NotAModel;

    fn from_str(text: &str) -> Result<Self, NotAModel> {
        let beginning = text.strip_suffix('*').unwrap_or(text);
        if text.is_empty() || beginning.contains('*') { Err(NotAModel) } else { Ok(Self(text.to_owned())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_exact_or_begin_alike() {
        for (pattern, model, expected) in [
            ("gpt-4o", "gpt-4o", true),
            ("gpt-4o", "gpt-4o-mini", false),
            ("gpt-4o", "GPT-4o", false),
            ("gpt-4*", "gpt-4o-mini", true),
            ("gpt-4*", "gpt-4", true),
            ("gpt-4*", "gpt-3.5", false),
            ("*", "anything", true),
        ] {
            let pattern: ModelPattern = pattern.parse().expect("a pattern");
            assert_eq!(pattern.matches(model), expected, "{pattern:?} for {model}");
        }
        for text in ["", "**", "a*b", "*a"] {
            assert_eq!(text.parse::<ModelPattern>(), Err(NotAModel), "{text:?}");
        }
    }
}
