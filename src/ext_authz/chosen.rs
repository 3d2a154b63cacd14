//! What an operator chose of a table: all of its rows, or those that are named.

/// The rows that are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen(Option<Vec<&'static str>>);

impl Chosen {
    /// Every row.
    pub fn all() -> Self {
        Self(None)
    }

    /// Those of `table` that are named, in whatever case; `all` names every one, and `none` alone no one.
    ///
    /// # Errors
    /// The name that is no row's.
    pub fn parse(names: &[String], table: impl Iterator<Item = &'static str> + Clone) -> Result<Self, &str> {
        if names.iter().any(|name| name == "all") {
            return Ok(Self::all());
        }
        if names == ["none"] {
            return Ok(Self(Some(Vec::new())));
        }
        let known = |name: &'_ String| table.clone().find(|known| known.eq_ignore_ascii_case(name));
        let chosen = names.iter().map(|name| known(name).ok_or(name.as_str()));
        Ok(Self(Some(chosen.collect::<Result<_, _>>()?)))
    }

    /// Whether the row of this name is sent.
    pub fn has(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|names| names.contains(&name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: [&str; 3] = ["colour", "size", "taste"];

    fn chosen(names: &[&str]) -> Result<Vec<&'static str>, String> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let chosen = Chosen::parse(&names, TABLE.into_iter()).map_err(str::to_owned)?;
        Ok(TABLE.into_iter().filter(|name| chosen.has(name)).collect())
    }

    #[test]
    fn those_that_are_named_are_sent() {
        assert_eq!(chosen(&["Size", "colour"]), Ok(vec!["colour", "size"]));
        assert_eq!(chosen(&["all"]), Ok(TABLE.to_vec()));
        assert_eq!(chosen(&["none"]), Ok(vec![]));
    }

    #[test]
    fn name_that_is_no_rows_is_refused() {
        for (names, unknown) in [(["size", "shape"], "shape"), (["none", "size"], "none"), (["size", ""], "")]
        {
            assert_eq!(chosen(&names), Err(unknown.to_owned()));
        }
    }
}
