//! Which keys a command is about.

use time::OffsetDateTime;

use super::{Result, needs_column};
use crate::store::{SqlValue, decode::timestamp::write_timestamp, schema::Schema, statements::Statements};

/// Conditions on keys. All of those that are set must hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KeyFilter {
    /// Id or email of the key's user.
    pub user: Option<String>,
    /// Tags that the key has, all of them.
    pub tags: Vec<String>,
    /// The beginning of the key's prefix.
    pub prefix: Option<String>,
    /// The key was not used since then. A key without a use is as old as its row, and one whose last use cannot be
    /// read counts as used.
    pub unused_since: Option<OffsetDateTime>,
    /// The key expires before then, and has not expired.
    pub expiring_before: Option<OffsetDateTime>,
    /// The key has expired.
    pub expired: bool,
    /// Whether it is revoked.
    pub state: KeyState,
}

/// Whether a key is revoked: disabled by `is_active`, or with a value in `deleted_at`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KeyState {
    /// It is not.
    #[default]
    Active,
    /// It is.
    Revoked,
    /// Either.
    Any,
}

/// A condition in SQL, and its parameters so far.
pub(super) struct Conditions {
    all: Vec<String>,
    pub(super) params: Vec<SqlValue>,
}

impl Conditions {
    /// Whose first parameters are these.
    pub(super) fn with_params(params: Vec<SqlValue>) -> Self {
        Self { all: Vec::new(), params }
    }

    /// Adds a parameter and returns its number.
    pub(super) fn param(&mut self, value: impl Into<String>) -> usize {
        self.params.push(Some(value.into()));
        self.params.len()
    }

    pub(super) fn add(&mut self, condition: impl Into<String>) {
        self.all.push(condition.into());
    }

    /// The WHERE clause. Empty without conditions.
    pub(super) fn clause(&self) -> String {
        if self.all.is_empty() { String::new() } else { format!("WHERE ({})", self.all.join(") AND (")) }
    }
}

impl KeyFilter {
    /// Whether it is about some keys only, whether revoked or not.
    pub fn is_narrow(&self) -> bool {
        *self != Self { state: self.state, ..Self::default() }
    }

    /// Adds its conditions on `api_keys k`. `user_id` is that of [`KeyFilter::user`].
    pub(super) fn add_to(
        &self,
        conditions: &mut Conditions,
        schema: &Schema,
        statements: &dyn Statements,
        user_id: Option<i64>,
        now: OffsetDateTime,
    ) -> Result<()> {
        let column = |column: &'static str| format!("k.{}", schema.name("api_keys", column));
        let kind = |column: &'static str| schema.kind("api_keys", column).unwrap_or("text");
        let instant = |name: &'static str| statements.instant(&column(name), kind(name));
        if let Some(user_id) = user_id {
            let param = conditions.param(user_id.to_string());
            conditions.add(format!("{} = {}", column("user_id"), schema.param(param, "api_keys", "user_id")));
        }
        for tag in &self.tags {
            needs_column(schema, "api_keys", "tags")?;
            let param = conditions.param(tag);
            conditions.add(statements.has_entry(&column("tags"), kind("tags"), param));
        }
        if let Some(prefix) = &self.prefix {
            let length = prefix.chars().count();
            let param = conditions.param(prefix);
            conditions.add(format!(
                "substr({}, 1, {length}) = {}",
                statements.bytewise(&column("key_prefix")),
                statements.param(param, "text")
            ));
        }
        if let Some(since) = self.unused_since {
            needs_column(schema, "api_keys", "last_used_at")?;
            let param = conditions.param(write_timestamp(since));
            let used = column("last_used_at");
            let created =
                if schema.has("api_keys", "created_at") { instant("created_at") } else { "NULL".to_owned() };
            conditions.add(format!(
                "CASE WHEN {used} IS NULL THEN {created} ELSE {} END < {}",
                instant("last_used_at"),
                statements.instant_param(param)
            ));
        }
        if self.expired || self.expiring_before.is_some() {
            needs_column(schema, "api_keys", "expires_at")?;
            let (expires, param) = (instant("expires_at"), conditions.param(write_timestamp(now)));
            let is_over = if self.expired { "<=" } else { ">" };
            conditions.add(format!("{expires} {is_over} {}", statements.instant_param(param)));
        }
        if let Some(before) = self.expiring_before {
            let (expires, param) = (instant("expires_at"), conditions.param(write_timestamp(before)));
            conditions.add(format!("{expires} < {}", statements.instant_param(param)));
        }
        let is_active = is_active(schema, statements);
        match self.state {
            KeyState::Active => conditions.add(is_active),
            KeyState::Revoked => conditions.add(format!("NOT ({is_active})")),
            KeyState::Any => {}
        }
        Ok(())
    }
}

/// A condition: the key is not revoked.
pub(super) fn is_active(schema: &Schema, statements: &dyn Statements) -> String {
    let column = |column| format!("k.{}", schema.name("api_keys", column));
    let Some(kind) = schema.kind("api_keys", "is_active") else {
        // A key without the column is inactive to every check.
        return "1 = 0".to_owned();
    };
    let is_active = statements.is_true(&column("is_active"), kind);
    if schema.has("api_keys", "deleted_at") {
        format!("{is_active} AND {} IS NULL", column("deleted_at"))
    } else {
        is_active
    }
}
