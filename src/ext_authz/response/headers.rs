//! Every header that Keystile sends to the upstream, in one table: name, meaning, value.
//!
//! A header without a value for the request at hand is removed from it if it may be there: an upstream must not take a
//! client's own copy for Keystile's.

use super::rate_limit;
use crate::{
    limits::{LimitStatus, Span, WindowStatus},
    record::KeyRecord,
};

mod record_values;
mod value;

pub(super) use record_values::RecordValues;
pub use value::TRUNCATED;

/// One header.
#[derive(Debug, Clone, Copy)]
pub struct UpstreamHeader {
    /// Its name, lower-case.
    pub name: &'static str,
    /// What it says, for the documentation.
    pub about: &'static str,
    pub(super) source: Source,
}

/// What decides the value of a header.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    /// The outcome of the check.
    Outcome,
    /// The key's record. The value is the same for every request with the key.
    Record(fn(&KeyRecord) -> Option<String>),
    /// The values of the others: those that are too long.
    Truncated,
    /// The state of one of the key's limits after this request.
    Limit(Span, fn(&WindowStatus) -> u64),
}

/// Every header, in the order in which they are documented.
pub const TABLE: &[UpstreamHeader] = &[
    UpstreamHeader {
        name: "x-auth-result",
        about: "`allow`; `anonymous` where the route needs no key and there was none; in shadow mode the code of the denial",
        source: Source::Outcome,
    },
    of_record("x-auth-user-id", "`users.id`", |key| Some(key.user.id.0.to_string())),
    of_record("x-auth-user-name", "`users.username`", |key| value::text(key.user.name.as_deref())),
    of_record("x-auth-user-email", "`users.email`", |key| value::text(key.user.email.as_deref())),
    of_record(
        "x-auth-user-role",
        "`users.role`, or the name of the role that `users.role_id` points to",
        |key| value::text(key.user.role.as_deref()),
    ),
    of_record("x-auth-user-superuser", "`true` or `false`", |key| Some(key.user.is_superuser.to_string())),
    of_record("x-auth-key-id", "`api_keys.id`", |key| Some(key.id.0.to_string())),
    of_record("x-auth-key-name", "`api_keys.name`", |key| value::text(key.name.as_deref())),
    of_record("x-auth-key-prefix", "the key's first eight characters", |key| {
        value::text(Some(key.prefix.as_str()))
    }),
    of_record("x-auth-key-expires-at", "RFC 3339, in UTC; absent when the key does not expire", |key| {
        value::expiry(key.expiry)
    }),
    of_record("x-auth-scopes", "list", |key| value::list(&key.scopes)),
    of_record("x-auth-tags", "list", |key| value::list(&key.tags)),
    of_record("x-auth-permissions", "JSON, as stored", |key| value::text(key.permissions.as_deref())),
    of_record("x-auth-allowed-models", "list; absent means unrestricted", |key| {
        value::allowed(&key.allowed.models)
    }),
    of_record("x-auth-allowed-chatbots", "list; absent means unrestricted", |key| {
        value::allowed(&key.allowed.chatbots)
    }),
    of_record("x-auth-allowed-agents", "list; absent means unrestricted", |key| {
        value::allowed(&key.allowed.agents)
    }),
    of_record(
        "x-auth-allowed-extract-templates",
        "list, where the column exists; absent means unrestricted",
        |key| value::allowed(&key.allowed.extract_templates),
    ),
    of_record("x-auth-budget-unlimited", "`true` or `false`", |key| value::number(key.budget.unlimited)),
    of_record("x-auth-budget-limit-cents", "`budget_limit_cents`", |key| {
        value::number(key.budget.limit_cents)
    }),
    of_record("x-auth-budget-type", "`budget_type`", |key| value::text(key.budget.kind.as_deref())),
    of_record(
        "x-auth-budget-spent-cents",
        "`total_cost` of the key and of those that it was rotated from and to, as it was when the record was read",
        |key| value::number(key.budget.spent_cents),
    ),
    of_record(
        rate_limit::LIMIT[Span::Minute as usize],
        "`rate_limit_per_minute`; absent means unlimited",
        |key| value::number(key.limits.minute),
    ),
    of_record(
        rate_limit::LIMIT[Span::Hour as usize],
        "`rate_limit_per_hour`; absent means unlimited",
        |key| value::number(key.limits.hour),
    ),
    of_record(rate_limit::LIMIT[Span::Day as usize], "`rate_limit_per_day`; absent means unlimited", |key| {
        value::number(key.limits.day)
    }),
    UpstreamHeader {
        name: "x-auth-truncated",
        about: "list of the headers above whose value is too long, over 4 KiB, or over 16 KiB together with the others; each of them is `!truncated`, which names nothing",
        source: Source::Truncated,
    },
    of_limit(
        rate_limit::REMAINING[Span::Minute as usize],
        "remaining requests of this minute; only where limits are counted (`KEYSTILE_RATE_LIMIT`)",
        Span::Minute,
        |left| left.remaining,
    ),
    of_limit(
        rate_limit::REMAINING[Span::Hour as usize],
        "remaining requests of this hour; only where limits are counted (`KEYSTILE_RATE_LIMIT`)",
        Span::Hour,
        |left| left.remaining,
    ),
    of_limit(
        rate_limit::REMAINING[Span::Day as usize],
        "remaining requests of this day; only where limits are counted (`KEYSTILE_RATE_LIMIT`)",
        Span::Day,
        |left| left.remaining,
    ),
    of_limit(
        rate_limit::RESET[Span::Minute as usize],
        "seconds until this minute is over, of the UTC clock; only where limits are counted",
        Span::Minute,
        |left| left.reset_seconds(),
    ),
    of_limit(
        rate_limit::RESET[Span::Hour as usize],
        "seconds until this hour is over, of the UTC clock; only where limits are counted",
        Span::Hour,
        |left| left.reset_seconds(),
    ),
    of_limit(
        rate_limit::RESET[Span::Day as usize],
        "seconds until this day is over, of the UTC clock; only where limits are counted",
        Span::Day,
        |left| left.reset_seconds(),
    ),
];

impl UpstreamHeader {
    /// The value that one of the key's limits decides, if this header has one.
    pub(super) fn limit_value(&self, limit_status: &LimitStatus) -> Option<u64> {
        match self.source {
            Source::Limit(span, value) => limit_status.windows[span as usize].as_ref().map(value),
            Source::Outcome | Source::Record(_) | Source::Truncated => None,
        }
    }
}

const fn of_record(
    name: &'static str,
    about: &'static str,
    value: fn(&KeyRecord) -> Option<String>,
) -> UpstreamHeader {
    UpstreamHeader { name, about, source: Source::Record(value) }
}

const fn of_limit(
    name: &'static str,
    about: &'static str,
    span: Span,
    value: fn(&WindowStatus) -> u64,
) -> UpstreamHeader {
    UpstreamHeader { name, about, source: Source::Limit(span, value) }
}

#[cfg(test)]
mod tests;
