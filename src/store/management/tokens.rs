//! Tokens of the management API: the table `keystile_management_tokens`.
//!
//! A token is 256 random bits, so its SHA-256 cannot be guessed back. A part of it, which is no secret, finds its row.

use std::{fmt, time::Duration};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{
    Action, Database, DisplayRow, ManagementError, Patch, Resource, Result, Statement, id, users::user_id,
};
use crate::{
    clock,
    record::UserId,
    store::{Row, StoreError, statement::Deadline},
};

/// A token as its table has it. The token itself is known only to its owner.
#[derive(Debug, Clone, PartialEq)]
pub struct ManagementToken {
    /// Its number.
    pub id: i64,
    /// Its name, which the audit log shows.
    pub name: String,
    /// What it allows.
    pub scope: TokenScope,
    created_at: OffsetDateTime,
    expires_at: Option<OffsetDateTime>,
    revoked_at: Option<OffsetDateTime>,
    last_used_at: Option<OffsetDateTime>,
}

/// What a token allows.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenScope {
    /// To read users and keys.
    Read,
    /// Everything.
    Write,
    /// The keys of one user.
    Own {
        /// The user.
        user: UserId,
        /// What the user's new keys get. Without it, none can be created.
        template: Option<KeyTemplate>,
    },
}

/// What keys get that a user creates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyTemplate {
    /// Columns that each new key has, as in a JSON merge patch.
    pub fields: Map<String, Value>,
    /// Maximum number of the user's keys that are not revoked.
    pub max_keys: u32,
    /// Maximum time until a new key expires, in seconds.
    pub max_lifetime: Option<u64>,
}

/// The secret of a new token.
pub struct TokenSecret(Zeroizing<String>);

/// How tokens begin.
const BRAND: &str = "ksm_";
/// Length of the part that finds the row.
const HANDLE: usize = 12;
/// Length of a token: 256 bits in base64, after the handle and `_`.
const LEN: usize = BRAND.len() + HANDLE + 1 + 43;

const TABLE: &str = "keystile_management_tokens";
const COLUMNS: [&str; 9] =
    ["id", "name", "scope", "user_id", "template", "created_at", "expires_at", "revoked_at", "last_used_at"];

impl TokenSecret {
    fn random() -> Self {
        let (handle, secret): ([u8; HANDLE / 2], Zeroizing<[u8; 32]>) =
            (rand::random(), Zeroizing::new(rand::random()));
        let secret = Zeroizing::new(BASE64URL_NOPAD.encode(&*secret));
        Self(Zeroizing::new(format!("{BRAND}{}_{}", HEXLOWER.encode(&handle), *secret)))
    }

    /// A token that a caller presents. `None` if it has not the form of one.
    pub fn parse(text: &str) -> Option<Self> {
        let (handle, rest) = text.strip_prefix(BRAND)?.split_at_checked(HANDLE)?;
        let is_well_formed = text.len() == LEN
            && text.is_ascii()
            && rest.starts_with('_')
            && handle.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_well_formed.then(|| Self(Zeroizing::new(text.to_owned())))
    }

    /// The text, to show it once.
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn handle(&self) -> &str {
        self.0.get(BRAND.len()..BRAND.len() + HANDLE).unwrap_or_default()
    }

    fn digest(&self) -> String {
        HEXLOWER.encode(&Sha256::digest(self.0.as_bytes()))
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(..)")
    }
}

impl TokenScope {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Own { .. } => "own",
        }
    }
}

impl KeyTemplate {
    /// A template of these columns.
    ///
    /// # Errors
    /// [`ManagementError`] that names the column that is wrong, or that the caller of the API chooses.
    pub fn new(fields: Map<String, Value>, max_keys: u32, max_lifetime: Option<Duration>) -> Result<Self> {
        let fields = Patch::new(Resource::Key, fields)?.into_fields();
        if let Some(own) =
            ["name", "description", "expires_at", "is_active"].iter().find(|own| fields.contains_key(**own))
        {
            return Err(ManagementError::Refused(format!(
                "--template: {own} is no part of a template; a user chooses it, or --max-lifetime limits it"
            )));
        }
        Ok(Self { fields, max_keys, max_lifetime: max_lifetime.map(|lifetime| lifetime.as_secs()) })
    }
}

impl ManagementToken {
    /// Whether it allows anything at this time.
    fn is_valid(&self, now: OffsetDateTime) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }

    fn state(&self, now: OffsetDateTime) -> &'static str {
        if self.revoked_at.is_some() {
            "revoked"
        } else if self.is_valid(now) {
            "active"
        } else {
            "expired"
        }
    }

    /// As operators see it.
    pub fn to_row(&self, now: OffsetDateTime) -> DisplayRow {
        let (user, template) = match &self.scope {
            TokenScope::Own { user, template } => (json!(user.0), json!(template)),
            TokenScope::Read | TokenScope::Write => (Value::Null, Value::Null),
        };
        let time = |time: Option<OffsetDateTime>| {
            let form = time::format_description::well_known::Rfc3339;
            time.and_then(|time| time.format(&form).ok()).map_or(Value::Null, Value::from)
        };
        DisplayRow::of([
            ("id", json!(self.id)),
            ("name", json!(self.name)),
            ("scope", json!(self.scope.name())),
            ("user_id", user),
            ("template", template),
            ("state", json!(self.state(now))),
            ("created_at", time(Some(self.created_at))),
            ("expires_at", time(self.expires_at)),
            ("revoked_at", time(self.revoked_at)),
            ("last_used_at", time(self.last_used_at)),
        ])
    }

    fn read(row: &Row) -> Option<Self> {
        let text = |at: usize| row.get(at)?.as_deref();
        let time = |at: usize| {
            let millis: i64 = text(at)?.parse().ok()?;
            OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).ok()
        };
        let scope = match text(2)? {
            "read" => TokenScope::Read,
            "write" => TokenScope::Write,
            "own" => TokenScope::Own {
                user: UserId(text(3)?.parse().ok()?),
                template: text(4).map(serde_json::from_str).transpose().ok()?,
            },
            _ => return None,
        };
        Some(Self {
            id: text(0)?.parse().ok()?,
            name: text(1)?.to_owned(),
            scope,
            created_at: time(5)?,
            // What cannot be read has ended.
            expires_at: text(6).map(|_| time(6).unwrap_or(OffsetDateTime::UNIX_EPOCH)),
            revoked_at: text(7).map(|_| time(7).unwrap_or(OffsetDateTime::UNIX_EPOCH)),
            last_used_at: time(8),
        })
    }
}

impl Database {
    /// Creates a token: its row, and the token, which cannot be shown again.
    ///
    /// # Errors
    /// [`ManagementError`] when the name is taken, the user is unknown, or the table is missing.
    pub async fn create_token(
        &self,
        name: &str,
        scope: &TokenScope,
        expires_at: Option<OffsetDateTime>,
    ) -> Result<(ManagementToken, TokenSecret)> {
        let (mut user, mut template) = (None, None);
        if let TokenScope::Own { user: owner, template: own } = scope {
            user = Some(user_id(&self.find_user(&owner.0.to_string()).await?)?.0.to_string());
            template = own.as_ref().map(|template| json!(template).to_string());
        }
        let secret = TokenSecret::random();
        let p = |number| self.statements().param(number, "text");
        let n = |number| self.statements().param(number, "bigint");
        let sql = format!(
            "INSERT INTO {TABLE} (handle, digest, name, scope, user_id, template, created_at, expires_at)
            SELECT {}, {}, {}, {}, {}, {}, {}, {}
            WHERE NOT EXISTS (SELECT 1 FROM {TABLE} WHERE name = {} AND revoked_at IS NULL)
            RETURNING CAST(id AS text)",
            p(1),
            p(2),
            p(3),
            p(4),
            n(5),
            p(6),
            n(7),
            n(8),
            p(3),
        );
        let params = [
            Some(secret.handle().to_owned()),
            Some(secret.digest()),
            Some(name.to_owned()),
            Some(scope.name().to_owned()),
            user,
            template,
            Some(millis(clock::wall()).to_string()),
            expires_at.map(|end| millis(end).to_string()),
        ];
        let created = self.change_by(Action::Create, Statement::new(sql, params)).await;
        let Some(id) = id(&created.map_err(without_table)?) else {
            return Err(ManagementError::Refused(format!(
                "--name {name}: a token has this name; see `keystile management-tokens list`"
            )));
        };
        let token = self.tokens("WHERE id = ", id.to_string()).await?.pop();
        let token = token.ok_or_else(|| ManagementError::Refused("the new token cannot be read".into()))?;
        Ok((token, secret))
    }

    /// All tokens, newest first.
    ///
    /// # Errors
    /// [`ManagementError`] when the table is missing.
    pub async fn list_tokens(&self) -> Result<Vec<ManagementToken>> {
        self.tokens("WHERE id > ", "0".into()).await
    }

    /// Revokes the one token with this id or name.
    ///
    /// # Errors
    /// [`ManagementError::Refused`] when there is none.
    pub async fn revoke_token(&self, id_or_name: &str) -> Result<ManagementToken> {
        let tokens = self.list_tokens().await?;
        let is = |token: &&ManagementToken| token.id.to_string() == id_or_name;
        let named = |token: &&ManagementToken| token.name == id_or_name && token.revoked_at.is_none();
        let Some(token) = tokens.iter().find(is).or_else(|| tokens.iter().find(named)) else {
            return Err(ManagementError::Refused(format!(
                "no token has the id or name {id_or_name}; see `keystile management-tokens list`"
            )));
        };
        if token.revoked_at.is_some() {
            return Ok(token.clone());
        }
        let sql = format!(
            "UPDATE {TABLE} SET revoked_at = {} WHERE id = {} RETURNING CAST(id AS text)",
            self.statements().param(1, "bigint"),
            self.statements().param(2, "bigint"),
        );
        let params = [millis(clock::wall()), token.id].map(|number| Some(number.to_string()));
        self.change_by(Action::Revoke, Statement::new(sql, params)).await.map_err(without_table)?;
        let revoked = self.tokens("WHERE id = ", token.id.to_string()).await?.pop();
        match revoked.filter(|token| token.revoked_at.is_some()) {
            Some(revoked) => Ok(revoked),
            None => Err(ManagementError::Refused("the database left the token as it is".into())),
        }
    }

    /// The token that a caller presents, if it is valid now.
    ///
    /// # Errors
    /// [`ManagementError`] when the database does not answer, or the table is missing.
    pub async fn authenticate_token(&self, secret: &TokenSecret) -> Result<Option<ManagementToken>> {
        let columns = COLUMNS.map(|column| format!("CAST({column} AS text)")).join(", ");
        let handle = self.statements().param(1, "text");
        let sql = format!("SELECT {columns}, digest FROM {TABLE} WHERE handle = {handle}");
        let rows = self.query(Statement::new(sql, [Some(secret.handle().to_owned())])).await;
        let now = clock::wall();
        for row in rows.map_err(without_table)? {
            let digest = row.last().and_then(Option::as_deref).unwrap_or_default();
            if bool::from(digest.as_bytes().ct_eq(secret.digest().as_bytes())) {
                return Ok(ManagementToken::read(&row).filter(|token| token.is_valid(now)));
            }
        }
        Ok(None)
    }

    /// Records that a token was used.
    ///
    /// # Errors
    /// [`ManagementError`] when the database does not answer.
    pub async fn touch_token(&self, id: i64) -> Result<()> {
        let sql = format!(
            "UPDATE {TABLE} SET last_used_at = {} WHERE id = {}",
            self.statements().param(1, "bigint"),
            self.statements().param(2, "bigint"),
        );
        let params = [millis(clock::wall()), id].map(|number| Some(number.to_string()));
        self.backend().query(Deadline::Operator, Statement::new(sql, params)).await?;
        Ok(())
    }

    /// Whether a token is valid now.
    ///
    /// # Errors
    /// [`ManagementError`] when the table is missing.
    pub async fn has_valid_token(&self) -> Result<bool> {
        let now = clock::wall();
        Ok(self.list_tokens().await?.iter().any(|token| token.is_valid(now)))
    }

    async fn tokens(&self, condition: &str, number: String) -> Result<Vec<ManagementToken>> {
        let columns = COLUMNS.map(|column| format!("CAST({column} AS text)")).join(", ");
        let param = self.statements().param(1, "bigint");
        let sql = format!("SELECT {columns} FROM {TABLE} {condition} {param} ORDER BY id DESC");
        let rows = self.query(Statement::new(sql, [Some(number)])).await.map_err(without_table)?;
        Ok(rows.iter().filter_map(ManagementToken::read).collect())
    }
}

pub(super) fn millis(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// Names the fix where the tables of the management API are missing.
pub(super) fn without_table(error: ManagementError) -> ManagementError {
    match error {
        ManagementError::Store(StoreError::Unfit(reason)) => ManagementError::Refused(format!(
            "the tables of the management API cannot be used: {reason}; run `keystile migrate` as the owner of the tables"
        )),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_read_back_and_shown_by_no_debug_output() {
        let token = TokenSecret::random();
        let again = TokenSecret::parse(token.expose()).expect("well-formed");
        assert_eq!((again.handle(), again.digest()), (token.handle(), token.digest()));
        assert_eq!(format!("{token:?}"), "TokenSecret(..)");
        let text = token.expose().to_owned();
        for bad in [&text[1..], &text[..LEN - 1], &format!("{text}x"), "ksm_", "", &"é".repeat(LEN / 2)] {
            assert!(TokenSecret::parse(bad).is_none(), "{bad}");
        }
    }
}
