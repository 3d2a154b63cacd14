//! Turns one row, all text, into a key record: the reading rules, pure.

use crate::{
    credential::Prefix,
    record::{Allowed, Budget, Expiry, KeyHash, KeyId, KeyRecord, Limits, Lock, User, UserId},
};

use super::{
    budgets,
    cell::{self, Cell, Expected},
};

const HASH: (&str, &str) = ("api_keys", "key_hash");

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
];

/// All that binds the key, in one cell.
pub(crate) const BUDGETS: (&str, &str) = ("budgets", "active rows");

/// Why a row cannot be decoded. Names the column, never the value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Undecodable {
    /// `api_keys.id`, where that much could be read.
    pub(crate) key: Option<String>,
    pub(crate) table: &'static str,
    pub(crate) column: &'static str,
    pub(crate) expected: Expected,
}

/// Decodes the cells of one row, which stand in the order of [`COLUMNS`].
pub(crate) fn decode(cells: &[Cell]) -> Result<KeyRecord, Undecodable> {
    decode_with(cells, |text| text.parse().map_err(|_| "an accepted bcrypt hash"))
}

/// Decodes a row that [`redact`] has made.
pub(crate) fn decode_redacted(cells: &[Cell]) -> Result<KeyRecord, Undecodable> {
    decode_with(cells, |text| KeyHash::parse_redacted(text).map_err(|_| "what is left of a hash"))
}

/// The row, with nothing left of the hash but what recalls a proof.
pub(crate) fn redact(mut cells: Vec<Cell>, hash: &KeyHash) -> Vec<Cell> {
    let at = COLUMNS.iter().position(|column| *column == HASH);
    at.into_iter().for_each(|at| cells[at] = Some(hash.redacted()));
    cells
}

fn decode_with(
    cells: &[Cell],
    hash: impl Fn(&str) -> Result<KeyHash, Expected>,
) -> Result<KeyRecord, Undecodable> {
    let (key, user) = (Row { cells, table: "api_keys" }, Row { cells, table: "users" });
    let (table, rows) = BUDGETS;
    Ok(KeyRecord {
        id: KeyId(key.required("id", cell::integer)?),
        name: key.text("name"),
        prefix: key.required("key_prefix", |text| Prefix::parse(text).map_err(|_| "8 characters"))?,
        hash: key.required(HASH.1, hash)?,
        is_active: key.read("is_active", cell::boolean)?.unwrap_or(false),
        // Whenever it was: somebody meant to take the key away.
        is_deleted: key.cell("deleted_at").is_some(),
        expiry: key.read("expires_at", cell::expiry)?.unwrap_or(Expiry::Never),
        user: decode_user(&user)?,
        scopes: key.read("scopes", cell::list)?.unwrap_or_default(),
        tags: key.read("tags", cell::list)?.unwrap_or_default(),
        permissions: key.read("permissions", cell::json)?.flatten().map(|json| json.to_string()),
        allowed: Allowed {
            models: cell::allow_list(key.cell("allowed_models")),
            endpoints: cell::allow_list(key.cell("allowed_endpoints")),
            ips: cell::allow_list(key.cell("allowed_ips")),
            chatbots: cell::allowed_names(key.cell("allowed_chatbots")),
            agents: cell::allowed_names(key.cell("allowed_agents")),
        },
        limits: Limits {
            minute: key.read("rate_limit_per_minute", cell::count)?,
            hour: key.read("rate_limit_per_hour", cell::count)?,
            day: key.read("rate_limit_per_day", cell::count)?,
        },
        budget: Budget {
            unlimited: key.read("is_unlimited", cell::boolean)?,
            limit_cents: key.read("budget_limit_cents", cell::integer)?,
            kind: key.text("budget_type"),
            spent_cents: key.read("total_cost", cell::number)?,
        },
        period_budgets: budgets::decode(Row { cells, table }.cell(rows)),
    })
}

fn decode_user(user: &Row<'_>) -> Result<User, Undecodable> {
    Ok(User {
        id: UserId(user.required("id", cell::integer)?),
        name: user.text("username"),
        email: user.text("email"),
        role: user.text("role"),
        is_active: user.read("is_active", cell::boolean)?.unwrap_or(false),
        is_superuser: user.read("is_superuser", cell::boolean)?.unwrap_or(false),
        lock: decode_lock(
            user.read("account_locked", cell::boolean)?,
            user.read("account_locked_until", cell::expiry)?,
        ),
    })
}

/// A lock without an end is closed; an end without a word on the lock is believed.
fn decode_lock(locked: Option<bool>, until: Option<Expiry>) -> Lock {
    match (locked, until) {
        (Some(false), _) | (None, None) => Lock::Open,
        (_, Some(Expiry::At(end))) => Lock::Until(end),
        (_, Some(Expiry::Always)) => Lock::Open,
        (Some(true), None) | (_, Some(Expiry::Never)) => Lock::Closed,
    }
}

struct Row<'a> {
    cells: &'a [Cell],
    table: &'static str,
}

impl Row<'_> {
    fn cell(&self, column: &'static str) -> Option<&str> {
        let at = COLUMNS.iter().position(|known| *known == (self.table, column))?;
        self.cells.get(at)?.as_deref()
    }

    fn text(&self, column: &'static str) -> Option<String> {
        self.cell(column).map(str::to_owned)
    }

    fn read<T>(
        &self,
        column: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Expected>,
    ) -> Result<Option<T>, Undecodable> {
        self.cell(column).map(parse).transpose().map_err(|expected| self.undecodable(column, expected))
    }

    fn required<T>(
        &self,
        column: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Expected>,
    ) -> Result<T, Undecodable> {
        self.read(column, parse)?.ok_or_else(|| self.undecodable(column, "a value"))
    }

    fn undecodable(&self, column: &'static str, expected: Expected) -> Undecodable {
        let key = Row { cells: self.cells, table: "api_keys" }.text("id");
        // Only a number is repeated: whatever else stands there may be a secret in the wrong column.
        let key = key.filter(|id| cell::integer(id).is_ok());
        Undecodable { key, table: self.table, column, expected }
    }
}

/// A row that decodes, with some columns (`users.` where they are a user's) changed.
#[cfg(test)]
pub(crate) fn sample(changes: &[(&str, Option<&str>)]) -> Vec<Cell> {
    let base = [
        ("id", "7"),
        ("key_prefix", &crate::record::sample::CREDENTIAL[..Prefix::LEN]),
        ("key_hash", crate::record::sample::HASH),
        ("is_active", "true"),
        ("users.id", "42"),
        ("users.is_active", "1"),
    ];
    let value = |name: &str| match changes.iter().find(|(changed, _)| *changed == name) {
        Some((_, value)) => value.map(str::to_owned),
        None => base.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()),
    };
    COLUMNS
        .iter()
        .map(|(table, column)| match *table {
            "users" => value(&format!("users.{column}")),
            _ => value(column),
        })
        .collect()
}

#[cfg(test)]
mod junk;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::AllowList;
    use time::macros::datetime;

    fn decoded(changes: &[(&str, Option<&str>)]) -> KeyRecord {
        decode(&sample(changes)).expect("decodes")
    }

    #[test]
    fn bare_row_is_an_unrestricted_key_without_scopes() {
        let record = decoded(&[]);
        assert_eq!((record.id, record.user.id), (KeyId(7), UserId(42)));
        assert!(record.is_active && record.user.is_active && !record.user.is_superuser);
        assert_eq!(record.expiry, Expiry::Never);
        assert!(record.scopes.is_empty() && record.tags.is_empty());
        assert_eq!(record.allowed, Allowed::default());
        assert_eq!(record.limits, Limits::default());
        assert_eq!(record.budget, Budget::default());
        assert_eq!(record.user.lock, Lock::Open);
    }

    #[test]
    fn null_is_active_is_inactive() {
        let record = decoded(&[("is_active", None), ("users.is_active", None)]);
        assert!(!record.is_active && !record.user.is_active);
    }

    #[test]
    fn any_value_of_deleted_at_is_a_deleted_key() {
        assert!(!decoded(&[("deleted_at", None)]).is_deleted);
        for deleted in ["2026-01-02 03:04:05", "2999-01-01 00:00:00", "infinity", "long ago", "0", ""] {
            assert!(decoded(&[("deleted_at", Some(deleted))]).is_deleted, "{deleted:?}");
        }
    }

    #[test]
    fn every_column_arrives_in_its_field() {
        let record = decoded(&[
            ("name", Some("build")),
            ("expires_at", Some("2026-01-02T03:04:05")),
            ("scopes", Some(r#"["chat"]"#)),
            ("tags", Some(r#"["a","b"]"#)),
            ("permissions", Some(r#"{ "files": "read" }"#)),
            ("allowed_models", Some(r#"["m"]"#)),
            ("allowed_endpoints", Some(r#"["/e"]"#)),
            ("allowed_ips", Some(r#"["10.0.0.0/8"]"#)),
            ("allowed_chatbots", Some(r#"["c"]"#)),
            ("allowed_agents", Some("{}")),
            ("rate_limit_per_minute", Some("1")),
            ("rate_limit_per_hour", Some("0")),
            ("rate_limit_per_day", Some("3")),
            ("is_unlimited", Some("f")),
            ("budget_limit_cents", Some("500")),
            ("budget_type", Some("monthly")),
            ("total_cost", Some("12.5")),
            ("users.username", Some("ada")),
            ("users.email", Some("ada@example.com")),
            ("users.role", Some("engineer")),
            ("users.is_superuser", Some("t")),
        ]);
        fn only<T: std::str::FromStr<Err: std::fmt::Debug>>(entry: &str) -> AllowList<T> {
            AllowList::Only(vec![entry.parse().expect("an entry")])
        }
        assert_eq!(record.name.as_deref(), Some("build"));
        assert_eq!(record.expiry, Expiry::At(datetime!(2026-01-02 03:04:05 UTC)));
        assert_eq!((record.scopes.len(), record.tags.len()), (1, 2));
        assert_eq!(record.permissions.as_deref(), Some(r#"{"files":"read"}"#));
        let lists = Allowed {
            models: only("m"),
            endpoints: only("/e"),
            ips: only("10.0.0.0/8"),
            chatbots: only("c"),
            agents: AllowList::Unreadable,
        };
        assert_eq!(record.allowed, lists);
        assert_eq!(record.limits, Limits { minute: Some(1), hour: Some(0), day: Some(3) });
        let budget = Budget {
            unlimited: Some(false),
            limit_cents: Some(500),
            kind: Some("monthly".into()),
            spent_cents: Some(12.5),
        };
        assert_eq!(record.budget, budget);
        assert_eq!(record.user.name.as_deref(), Some("ada"));
        assert_eq!(record.user.email.as_deref(), Some("ada@example.com"));
        assert_eq!(record.user.role.as_deref(), Some("engineer"));
        assert!(record.user.is_superuser);
    }

    #[test]
    fn malformed_value_denies_the_whole_row_and_names_its_column() {
        for (name, value) in [
            ("id", None),
            ("id", Some("x")),
            ("key_prefix", None),
            ("key_prefix", Some("short")),
            ("key_hash", None),
            ("key_hash", Some("!")),
            ("is_active", Some("maybe")),
            ("expires_at", Some("tomorrow")),
            ("scopes", Some("chat")),
            ("tags", Some("{}")),
            ("permissions", Some("{")),
            ("rate_limit_per_minute", Some("-1")),
            ("rate_limit_per_hour", Some("NaN")),
            ("budget_limit_cents", Some("much")),
            ("total_cost", Some("NaN")),
            ("users.id", None),
            ("users.is_active", Some("2")),
            ("users.account_locked", Some("?")),
            ("users.account_locked_until", Some("later")),
        ] {
            let error = decode(&sample(&[(name, value)])).expect_err(name);
            let full = if error.table == "users" { "users." } else { "" };
            assert_eq!(format!("{full}{}", error.column), name);
            assert_eq!(error.key.as_deref(), if name == "id" { None } else { Some("7") });
        }
    }

    #[test]
    fn lock_is_open_closed_or_timed() {
        let end = datetime!(2026-01-02 03:04:05 UTC);
        for (locked, until, lock) in [
            (None, None, Lock::Open),
            (Some("0"), None, Lock::Open),
            (Some("0"), Some("2026-01-02 03:04:05"), Lock::Open),
            (Some("1"), None, Lock::Closed),
            (Some("1"), Some("2026-01-02 03:04:05"), Lock::Until(end)),
            (None, Some("2026-01-02 03:04:05"), Lock::Until(end)),
            (Some("1"), Some("infinity"), Lock::Closed),
            (Some("1"), Some("-infinity"), Lock::Open),
        ] {
            let record = decoded(&[("users.account_locked", locked), ("users.account_locked_until", until)]);
            assert_eq!(record.user.lock, lock, "{locked:?} {until:?}");
        }
    }
}
