//! `keystile.model_fields`: the fields of a body that name models.

/// Names of top-level members of the body. The first holds the request's model, the others further models that a router
/// may use instead.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelFields(Option<Box<[Box<str>]>>);

/// As routers read them.
pub(super) const DEFAULT: [&str; 3] = ["model", "models", "fallbacks"];

/// Maximum number of fields.
const MAX_FIELDS: usize = 16;

impl ModelFields {
    /// Parses names separated by comma.
    ///
    /// # Errors
    /// When there is no name, an invalid name, a repeated one, or more than 16.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let names: Vec<&str> = text.split(',').map(str::trim_ascii).collect();
        let is_repeated = |(place, name): (usize, &&str)| {
            names[..place].iter().any(|before| before.eq_ignore_ascii_case(name))
        };
        if names.len() > MAX_FIELDS
            || !names.iter().all(|name| is_field_name(name))
            || names.iter().enumerate().any(is_repeated)
        {
            return Err("is not a list of 1 to 16 fields of the body, such as model,models");
        }
        Ok(Self(Some(names.into_iter().map(Into::into).collect())))
    }

    /// The names; `None` if they are [`DEFAULT`].
    pub(super) fn custom(&self) -> Option<&[Box<str>]> {
        self.0.as_deref()
    }

    /// The field with the request's model.
    pub fn first(&self) -> &str {
        self.custom().and_then(<[_]>::first).map_or(DEFAULT[0], AsRef::as_ref)
    }
}

/// Whether this can be the name of a top-level member. A path such as `agent.id` would never be found.
pub fn is_field_name(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=64).contains(&text.len()) && text.bytes().all(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_separated_by_comma() {
        let fields = ModelFields::parse("engine, route-models,_x").expect("names");
        let names: Vec<_> = fields.custom().expect("custom").iter().map(AsRef::as_ref).collect();
        assert_eq!((names, fields.first()), (vec!["engine", "route-models", "_x"], "engine"));
        assert_eq!(ModelFields::default().first(), "model");
    }

    #[test]
    fn names_that_would_never_be_found_are_refused() {
        let many = vec!["a"; 17].join(",");
        for bad in ["", ",", "model,", "a b", "a.b", "a[0]", "modèle", "model,Model", "model,model", &many] {
            assert!(ModelFields::parse(bad).is_err(), "{bad:?}");
        }
        assert!(ModelFields::parse(&"a".repeat(65)).is_err());
    }
}
