//! One key to import.

use std::fmt;

use super::super::{ColumnValue, columns::API_KEYS};
use crate::{
    credential::{Credential, Prefix},
    record::{KeyHash, Sha256Hash},
};

/// One key to import, its values checked. They may be a hash or a secret, so they are not shown.
#[derive(Clone)]
pub struct ImportRow {
    pub(super) line: u64,
    pub(super) values: Vec<ColumnValue>,
    pub(super) user_email: Option<String>,
    /// What another product says of the key. `None` for a row with the columns of `api_keys`.
    pub(super) exported: Option<Exported>,
}

/// A key of another product.
#[derive(Debug, Clone)]
pub(super) struct Exported {
    pub(super) owner: Option<ExportedUser>,
    /// The whole key, whose hash is still to be made.
    pub(super) secret: Option<Credential>,
}

/// An owner as another product names it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ExportedUser {
    /// Its id in the application, such as Kong's `custom_id` or Unkey's `externalId`.
    pub id: Option<String>,
    /// Its name, such as Kong's `username`.
    pub name: Option<String>,
}

impl fmt::Debug for ImportRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<_> = self.values.iter().map(|(name, _)| name).collect();
        f.debug_struct("ImportRow")
            .field("line", &self.line)
            .field("columns", &columns)
            .finish_non_exhaustive()
    }
}

impl ImportRow {
    /// The column that names the key's user by email, in place of `user_id`.
    pub const USER_EMAIL: &'static str = "user_email";

    /// Whether a row may have this column.
    pub fn knows(column: &str) -> bool {
        column == Self::USER_EMAIL || API_KEYS.iter().any(|known| known.name == column)
    }

    /// Checks the columns and values of one line.
    ///
    /// # Errors
    /// A sentence that names the column and its expected value. It repeats no value, which may be a hash in the wrong
    /// column.
    pub fn parse(line: u64, fields: impl IntoIterator<Item = (String, String)>) -> Result<Self, String> {
        let row = Self::with_values(line, fields)?;
        for column in ["key_hash", "key_prefix"] {
            if row.value(column).is_none() {
                return Err(format!("{column} is missing"));
            }
        }
        if row.value("user_id").is_none() && row.user_email.is_none() {
            return Err("user_id or user_email is missing".into());
        }
        Ok(row)
    }

    /// A key of another product, of which the whole secret is known.
    ///
    /// # Errors
    /// A sentence that names the column whose value does not fit.
    pub fn with_secret(
        line: u64,
        secret: Credential,
        owner: Option<ExportedUser>,
        fields: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, String> {
        let mut row = Self::with_values(line, fields)?;
        row.values.push(("key_prefix", Some(secret.prefix().as_str().to_owned())));
        row.exported = Some(Exported { owner, secret: Some(secret) });
        Ok(row)
    }

    /// A key of another product, of which the beginning and a hash are known.
    ///
    /// # Errors
    /// As above.
    pub fn with_hash(
        line: u64,
        (prefix, hash): (Prefix, Sha256Hash),
        owner: Option<ExportedUser>,
        fields: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, String> {
        let mut row = Self::with_values(line, fields)?;
        row.values.push(("key_prefix", Some(prefix.as_str().to_owned())));
        row.values.push(("key_hash", Some(hash.expose())));
        row.exported = Some(Exported { owner, secret: None });
        Ok(row)
    }

    fn with_values(line: u64, fields: impl IntoIterator<Item = (String, String)>) -> Result<Self, String> {
        let mut row = Self { line, values: Vec::new(), user_email: None, exported: None };
        for (name, text) in fields {
            if name == Self::USER_EMAIL {
                row.user_email = Some(text);
                continue;
            }
            let Some(column) = API_KEYS.iter().find(|column| column.name == name) else {
                return Err("a column that api_keys does not have".into());
            };
            let value = column.kind.normalize(&text);
            row.values.push((column.name, value.map_err(|expected| format!("{name} is not {expected}"))?));
        }
        row.values.retain(|(_, value)| value.is_some());
        Ok(row)
    }

    pub(super) fn value(&self, column: &str) -> Option<&str> {
        self.values.iter().find(|(name, _)| *name == column)?.1.as_deref()
    }

    pub(super) fn prefix(&self) -> &str {
        self.value("key_prefix").unwrap_or_default()
    }

    pub(super) fn secret(&self) -> Option<&Credential> {
        self.exported.as_ref()?.secret.as_ref()
    }

    /// The SHA-256 of its secret, where it is known.
    pub(super) fn sha256(&self) -> Option<KeyHash> {
        match self.secret() {
            Some(secret) => Some(Sha256Hash::of(secret).into()),
            None => self.value("key_hash")?.parse::<Sha256Hash>().ok().map(KeyHash::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixtures;

    fn parse(fields: &[(&str, &str)]) -> Result<ImportRow, String> {
        let base = [("key_hash", fixtures::HASH), ("key_prefix", "ks_sampl"), ("user_id", "1")];
        let kept = base.iter().filter(|(name, _)| fields.iter().all(|(other, _)| other != name));
        let fields = kept.chain(fields.iter().filter(|(_, text)| !text.is_empty()));
        ImportRow::parse(2, fields.map(|(name, text)| ((*name).to_owned(), (*text).to_owned())))
    }

    #[test]
    fn no_form_of_a_row_shows_its_hash_or_its_secret() {
        let credential: Credential =
            Credential::parse(fixtures::CREDENTIAL.as_bytes()).expect("a credential");
        let sha256 = Sha256Hash::of(&credential);
        let prefix = credential.prefix();
        let rows = [
            parse(&[]),
            ImportRow::with_hash(2, (prefix, sha256), None, []),
            ImportRow::with_secret(2, credential, None, []),
        ];
        for row in rows {
            let row = row.expect("a row");
            let shown = format!("{row:?} {row:#?} {:?}", row.exported);
            let secrets = [row.value("key_hash"), Some(fixtures::CREDENTIAL)];
            for secret in secrets.into_iter().flatten() {
                assert!(!shown.contains(&secret[8..]), "{shown}");
            }
            assert!(shown.contains("key_prefix"), "{shown}");
        }
    }

    #[test]
    fn every_malformed_value_is_named_by_its_column_and_not_repeated() {
        assert!(parse(&[]).is_ok());
        for (column, bad) in [
            ("key_hash", "$2x$secret"),
            ("key_hash", "$sha256$secret"),
            ("key_hash", ""),
            ("key_prefix", "short"),
            ("user_id", fixtures::HASH),
            ("expires_at", "tomorrow"),
            ("rate_limit_per_day", "-1"),
            ("scopes", "chat embed"),
            ("is_active", "yes!"),
        ] {
            let error = parse(&[(column, bad)]).expect_err(column);
            assert!(error.contains(column), "{error}");
            assert!(bad.is_empty() || !error.contains(bad), "{error}");
        }
    }
}
