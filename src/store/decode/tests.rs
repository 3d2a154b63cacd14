//! Each column is decoded into its field, and a malformed value denies.

use time::macros::datetime;

use super::{fixtures::row_with, *};
use crate::record::AllowList;

mod arbitrary_text;

fn decoded(changes: &[(&str, Option<&str>)]) -> KeyRecord {
    decode(&row_with(changes), AccountLock::Deny).expect("decodes")
}

#[test]
fn bare_row_is_an_unrestricted_key_without_scopes() {
    let record = decoded(&[]);
    assert_eq!((record.id, record.user.id), (KeyId(7), UserId(42)));
    assert!(record.is_active && record.user.is_active && !record.user.is_superuser);
    assert_eq!(record.expiry, Expiry::Never);
    assert!(record.scopes.is_empty() && record.tags.is_empty());
    assert_eq!(record.allowed, Restrictions::default());
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
        ("allowed_extract_templates", Some(r#"["invoice", 7]"#)),
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
    let lists = Restrictions {
        models: only("m"),
        endpoints: only("/e"),
        ips: only("10.0.0.0/8"),
        chatbots: only("c"),
        agents: AllowList::Unreadable,
        extract_templates: AllowList::Only(vec!["invoice".into(), "7".into()]),
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
        let error = decode(&row_with(&[(name, value)]), AccountLock::Deny).expect_err(name);
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

#[test]
fn ignored_lock_need_not_be_readable() {
    for (locked, until) in [
        (None, None),
        (Some("1"), None),
        (Some("1"), Some("2999-01-01 00:00:00")),
        (Some("?"), Some("later")),
    ] {
        let row = row_with(&[("users.account_locked", locked), ("users.account_locked_until", until)]);
        let record = decode(&row, AccountLock::Ignore).expect("decodes");
        assert_eq!(record.user.lock, Lock::Ignored, "{locked:?} {until:?}");
        assert_eq!(
            decode_redacted(
                &redact(row, &record.hash, &crate::credential::CacheSecret::random()),
                AccountLock::Ignore
            )
            .map(|redacted| redacted.user.lock),
            Ok(Lock::Ignored)
        );
    }
}
