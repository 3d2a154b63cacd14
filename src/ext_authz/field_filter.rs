//! Which rows of a table an operator wants sent: all of them, or those that are named.

/// The rows of a table that are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldFilter(Option<Vec<&'static str>>);

impl FieldFilter {
    /// Every row.
    pub fn all() -> Self {
        Self(None)
    }

    /// The rows of `table` that are named, in any case. `all` names every row; `none`, alone, names no row.
    ///
    /// # Errors
    /// The first name that is not in the table.
    pub fn parse(names: &[String], table: impl Iterator<Item = &'static str> + Clone) -> Result<Self, &str> {
        if names.iter().any(|name| name == "all") {
            return Ok(Self::all());
        }
        if names == ["none"] {
            return Ok(Self(Some(Vec::new())));
        }
        let known = |name: &'_ String| table.clone().find(|known| known.eq_ignore_ascii_case(name));
        let rows = names.iter().map(|name| known(name).ok_or(name.as_str()));
        Ok(Self(Some(rows.collect::<Result<_, _>>()?)))
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

    fn sent(names: &[&str]) -> Result<Vec<&'static str>, String> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let filter = FieldFilter::parse(&names, TABLE.into_iter()).map_err(str::to_owned)?;
        Ok(TABLE.into_iter().filter(|name| filter.has(name)).collect())
    }

    #[test]
    fn named_rows_are_sent() {
        assert_eq!(sent(&["Size", "colour"]), Ok(vec!["colour", "size"]));
        assert_eq!(sent(&["all"]), Ok(TABLE.to_vec()));
        assert_eq!(sent(&["none"]), Ok(vec![]));
    }

    #[test]
    fn name_outside_the_table_is_refused() {
        for (names, unknown) in [(["size", "shape"], "shape"), (["none", "size"], "none"), (["size", ""], "")]
        {
            assert_eq!(sent(&names), Err(unknown.to_owned()));
        }
    }
}
