//! A key record for unit tests: active, unrestricted, with a value in nearly every field.

use super::*;

/// bcrypt at cost 4 of [`CREDENTIAL`], made by passlib.
pub(crate) const HASH: &str = "$2b$04$6q9BoBmFnzUHBXzeU2EI8e8EzfrzE6oitM6WpEA.O897CcJpI2bkG";
/// The credential that [`record`] belongs to.
pub(crate) const CREDENTIAL: &str = "ks_sampleCredentialOfUnitTests";

pub(crate) fn record() -> KeyRecord {
    KeyRecord {
        id: KeyId(7),
        name: Some("build server".into()),
        prefix: Prefix::parse(&CREDENTIAL[..Prefix::LEN]).expect("a prefix"),
        hash: HASH.parse().expect("an accepted hash"),
        is_active: true,
        is_deleted: false,
        expiry: Expiry::Never,
        user: User {
            id: UserId(42),
            name: Some("ada".into()),
            email: Some("ada@example.com".into()),
            role: Some("engineer".into()),
            is_active: true,
            is_superuser: false,
            lock: Lock::Open,
        },
        scopes: vec!["chat".into(), "embed".into()],
        tags: vec!["team:a,b".into()],
        permissions: Some(r#"{"files":"read"}"#.into()),
        allowed: Restrictions::default(),
        limits: Limits { minute: Some(60), hour: None, day: Some(10_000) },
        limit_id: KeyId(7),
        chain: None,
        budget: Budget {
            unlimited: Some(false),
            limit_cents: Some(5_000),
            kind: Some("total".into()),
            spent_cents: Some(12.5),
        },
        period_budgets: PeriodBudgets::default(),
    }
}
