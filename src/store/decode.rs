//! Decodes a row of texts into a key record. Pure.

use crate::{
    config::AccountLock,
    credential::{CacheSecret, Prefix},
    record::{
        Budget, Chain, Expiry, KeyHash, KeyId, KeyRecord, Limits, Lock, Restrictions, User, UserId,
        endpoint::Endpoint, model::ModelPattern, network::Network,
    },
};

use super::{Row, SqlValue};

pub(crate) mod budgets;
mod chain;
pub(crate) mod lenient;
pub(crate) mod timestamp;
pub(crate) mod value;

use value::Expectation;

pub(crate) const HASH: (&str, &str) = ("api_keys", "key_hash");

/// What a decision needs, in the order in which it is selected.
pub(crate) const COLUMNS: &[(&str, &str)] = &[
    ("api_keys", "id"),
    ("api_keys", "name"),
    ("api_keys", "key_prefix"),
    HASH,
    ("api_keys", "is_active"),
    ("api_keys", "deleted_at"),
    ("api_keys", "expires_at"),
    ("api_keys", "scopes"),
    ("api_keys", "tags"),
    ("api_keys", "permissions"),
    ("api_keys", "allowed_models"),
    ("api_keys", "allowed_endpoints"),
    ("api_keys", "allowed_ips"),
    ("api_keys", "allowed_chatbots"),
    ("api_keys", "allowed_agents"),
    ("api_keys", "allowed_extract_templates"),
    ("api_keys", "rate_limit_per_minute"),
    ("api_keys", "rate_limit_per_hour"),
    ("api_keys", "rate_limit_per_day"),
    ("api_keys", "is_unlimited"),
    ("api_keys", "budget_limit_cents"),
    ("api_keys", "budget_type"),
    ("api_keys", "total_cost"),
    ("users", "id"),
    ("users", "username"),
    ("users", "email"),
    ("users", "role"),
    ("users", "is_active"),
    ("users", "is_superuser"),
    ("users", "account_locked"),
    ("users", "account_locked_until"),
    BUDGETS,
    CHAIN,
    SHARED_USAGE,
];

/// The budgets of the key and of its user, in one value.
pub(crate) const BUDGETS: (&str, &str) = ("budgets", "active rows");

/// The rotations of the key's chain, in one value.
pub(crate) const CHAIN: (&str, &str) = ("keystile_rotations", "chain");

/// What other keys of the chain have used of the key's budgets, in one value.
pub(crate) const SHARED_USAGE: (&str, &str) = ("keystile_rotated_budgets", "usage");

/// Why a row cannot be decoded. It names the column, never the value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DecodeError {
    /// `api_keys.id`, where it could be decoded.
    pub(crate) key: Option<String>,
    pub(crate) table: &'static str,
    pub(crate) column: &'static str,
    pub(crate) expected: Expectation,
}

/// Decodes the values of one row, in the order of [`COLUMNS`].
pub(crate) fn decode(values: &[SqlValue], locks: AccountLock) -> Result<KeyRecord, DecodeError> {
    decode_with(values, locks, |text| text.parse().map_err(|_| "an accepted hash"))
}

/// Decodes a row that [`redact`] returned.
pub(crate) fn decode_redacted(values: &[SqlValue], locks: AccountLock) -> Result<KeyRecord, DecodeError> {
    decode_with(values, locks, |text| KeyHash::parse_redacted(text).map_err(|_| "a redacted hash"))
}

/// The row, with its hash in the form that lets nobody without the secret try keys.
pub(crate) fn redact(mut values: Row, hash: &KeyHash, secret: &CacheSecret) -> Row {
    let at = COLUMNS.iter().position(|column| *column == HASH);
    if let Some(at) = at {
        values[at] = Some(hash.redacted(secret));
    }
    values
}

/// Why a restricting list of the row cannot be read.
pub(crate) fn list_problem(values: &[SqlValue], column: &str) -> String {
    let at = COLUMNS.iter().position(|(table, name)| (*table, *name) == ("api_keys", column));
    let json = at.and_then(|at| values.get(at)?.as_deref());
    match column {
        "allowed_models" => value::list_problem::<ModelPattern>(json, value::list),
        "allowed_endpoints" => value::list_problem::<Endpoint>(json, value::list),
        "allowed_ips" => value::list_problem::<Network>(json, value::list),
        _ => value::list_problem::<String>(json, value::names),
    }
}

fn decode_with(
    values: &[SqlValue],
    locks: AccountLock,
    hash: impl Fn(&str) -> Result<KeyHash, Expectation>,
) -> Result<KeyRecord, DecodeError> {
    let (key, user) = (RowReader { values, table: "api_keys" }, RowReader { values, table: "users" });
    let (table, rows) = BUDGETS;
    let id = KeyId(key.required("id", value::integer)?);
    let mut record = KeyRecord {
        id,
        name: key.text("name"),
        prefix: key.required("key_prefix", |text| Prefix::parse(text).map_err(|_| "8 characters"))?,
        hash: key.required(HASH.1, hash)?,
        is_active: key.read("is_active", value::boolean)?.unwrap_or(false),
        // Any value, even a future or unreadable time, marks the key as deleted.
        is_deleted: key.value("deleted_at").is_some(),
        expiry: key.read("expires_at", timestamp::expiry)?.unwrap_or(Expiry::Never),
        user: decode_user(&user, locks)?,
        scopes: key.read("scopes", value::list)?.unwrap_or_default(),
        tags: key.read("tags", value::list)?.unwrap_or_default(),
        permissions: key.read("permissions", value::json)?.flatten().map(|json| json.to_string()),
        allowed: Restrictions {
            models: value::allow_list(key.value("allowed_models")),
            endpoints: value::allow_list(key.value("allowed_endpoints")),
            ips: value::allow_list(key.value("allowed_ips")),
            chatbots: value::allowed_names(key.value("allowed_chatbots")),
            agents: value::allowed_names(key.value("allowed_agents")),
            extract_templates: value::allowed_names(key.value("allowed_extract_templates")),
        },
        limits: Limits {
            minute: key.read("rate_limit_per_minute", value::count)?,
            hour: key.read("rate_limit_per_hour", value::count)?,
            day: key.read("rate_limit_per_day", value::count)?,
        },
        budget: Budget {
            unlimited: key.read("is_unlimited", value::boolean)?,
            limit_cents: key.read("budget_limit_cents", value::integer)?,
            kind: key.text("budget_type"),
            spent_cents: key.read("total_cost", value::number)?,
        },
        limit_id: id,
        chain: None,
        period_budgets: budgets::decode(
            RowReader { values, table }.value(rows),
            RowReader { values, table: SHARED_USAGE.0 }.value(SHARED_USAGE.1),
        ),
    };
    add_chain(
        &mut record,
        RowReader { values, table: CHAIN.0 }.read(CHAIN.1, |json| chain::decode(json, id))?,
    );
    Ok(record)
}

/// What the keys of a chain have spent adds up.
fn add_chain(record: &mut KeyRecord, decoded: Option<(KeyId, Option<Box<Chain>>)>) {
    let Some((limit_id, Some(chain))) = decoded else { return };
    record.limit_id = limit_id;
    record.budget.spent_cents = Some(record.budget.spent_cents.unwrap_or(0.0) + chain.spent_by_others());
    record.chain = Some(chain);
}

fn decode_user(user: &RowReader<'_>, locks: AccountLock) -> Result<User, DecodeError> {
    Ok(User {
        id: UserId(user.required("id", value::integer)?),
        name: user.text("username"),
        email: user.text("email"),
        role: user.text("role"),
        is_active: user.read("is_active", value::boolean)?.unwrap_or(false),
        is_superuser: user.read("is_superuser", value::boolean)?.unwrap_or(false),
        lock: match locks {
            AccountLock::Deny => decode_lock(
                user.read("account_locked", value::boolean)?,
                user.read("account_locked_until", timestamp::expiry)?,
            ),
            // What restricts nothing need not be readable.
            AccountLock::Ignore => Lock::Ignored,
        },
    })
}

/// A lock without an end is closed. An end without a flag counts as a lock.
fn decode_lock(locked: Option<bool>, until: Option<Expiry>) -> Lock {
    match (locked, until) {
        (Some(false), _) | (None, None) => Lock::Open,
        (_, Some(Expiry::At(end))) => Lock::Until(end),
        (_, Some(Expiry::Always)) => Lock::Open,
        (Some(true), None) | (_, Some(Expiry::Never)) => Lock::Closed,
    }
}

struct RowReader<'a> {
    values: &'a [SqlValue],
    table: &'static str,
}

impl RowReader<'_> {
    fn value(&self, column: &'static str) -> Option<&str> {
        let at = COLUMNS.iter().position(|known| *known == (self.table, column))?;
        self.values.get(at)?.as_deref()
    }

    fn text(&self, column: &'static str) -> Option<String> {
        self.value(column).map(str::to_owned)
    }

    fn read<T>(
        &self,
        column: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Expectation>,
    ) -> Result<Option<T>, DecodeError> {
        self.value(column).map(parse).transpose().map_err(|expected| self.undecodable(column, expected))
    }

    fn required<T>(
        &self,
        column: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Expectation>,
    ) -> Result<T, DecodeError> {
        self.read(column, parse)?.ok_or_else(|| self.undecodable(column, "a value"))
    }

    fn undecodable(&self, column: &'static str, expected: Expectation) -> DecodeError {
        let key = RowReader { values: self.values, table: "api_keys" }.text("id");
        // Only a number is repeated: any other text may be a secret in the wrong column.
        let key = key.filter(|id| value::integer(id).is_ok());
        DecodeError { key, table: self.table, column, expected }
    }
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
