//! The outcome as dynamic metadata, for Envoy's access log, RBAC and rate-limit filters: every field in one table.
//!
//! Envoy keeps it under `envoy.filters.http.ext_authz`, on allow and on deny.

use super::struct_writer::StructWriter;
use crate::{
    attributes::route::InvalidRouteSetting,
    decision::Tier,
    ext_authz::{
        field_filter::FieldFilter, outcome::Proven, proto::writer::put_message, request::ParsedRequest,
    },
    limits::{LimitStatus, WindowStatus},
    record::{Expiry, KeyRecord, Limits, User, rfc3339},
};

/// One field.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it says, for the documentation.
    pub about: &'static str,
    source: Source,
}

/// What decides a field. Each function writes it, if there is something to write.
#[derive(Debug, Clone, Copy)]
enum Source {
    Outcome(fn(&str, &OutcomeFacts, &mut StructWriter<'_>)),
    Record(fn(&str, &KeyRecord, &mut StructWriter<'_>)),
    Check(fn(&str, &CheckFacts<'_>, &mut StructWriter<'_>)),
}

/// The part of the metadata that the outcome alone decides.
#[derive(Debug, Clone, Copy)]
pub(super) struct OutcomeFacts {
    /// `allow` or `deny`: what becomes of the request.
    pub(super) decision: &'static str,
    /// As in `x-auth-result`: `allow`, `anonymous`, or the code of a denial, enforced or not.
    pub(super) result: &'static str,
    /// The code of the denial, enforced or not.
    pub(super) reason: Option<&'static str>,
}

/// The part of the metadata that is different for each check.
#[derive(Debug, Clone, Copy)]
pub(super) struct CheckFacts<'a> {
    tier: Option<Tier>,
    is_stale: bool,
    limit_status: Option<&'a LimitStatus>,
    route_error: Option<&'a InvalidRouteSetting>,
    has_foreign_credential: bool,
}

/// Every field, in the order in which they are documented.
pub const TABLE: &[Field] = &[
    of_outcome("decision", "`allow` or `deny`: what becomes of the request", |name, facts, fields| {
        fields.text(name, facts.decision);
    }),
    of_outcome("result", "as in `x-auth-result`", |name, facts, fields| fields.text(name, facts.result)),
    of_outcome(
        "reason",
        "the code of the denial, also of one that shadow mode only reports",
        |name, facts, fields| {
            if let Some(reason) = facts.reason {
                fields.text(name, reason);
            }
        },
    ),
    of_check("route_error", "what Keystile cannot follow of the route's settings", |name, facts, fields| {
        if let Some(error) = facts.route_error {
            fields.text(name, &error.to_string());
        }
    }),
    of_check(
        "foreign_credential",
        "`true` when a header has a token that is not an API key (`KEYSTILE_KEY_BRANDS`). Keystile has not verified it",
        |name, facts, fields| {
            if facts.has_foreign_credential {
                fields.boolean(name, true);
            }
        },
    ),
    of_check(
        "stale",
        "`true` when the key's time was up and the database did not answer",
        |name, facts, fields| {
            if facts.is_stale {
                fields.boolean(name, true);
            }
        },
    ),
    of_check("tier", "who had the record: `memory`, `redis` or `database`", |name, facts, fields| {
        if let Some(tier) = facts.tier {
            fields.text(name, tier.name());
        }
    }),
    // A string: Envoy's rate-limit filters take no other kind as a descriptor.
    of_record("key_id", "`api_keys.id`, as a string", |name, key, fields| {
        fields.text(name, &key.id.0.to_string());
    }),
    of_record(
        "limit_id",
        "the id that requests are counted under, as a string: `key_id`, or the first key that this one was rotated from",
        |name, key, fields| fields.text(name, &key.limit_id.0.to_string()),
    ),
    of_record(
        "rotated_to",
        "where the key was rotated, `api_keys.id` of its successor, as a string",
        |name, key, fields| {
            if let Some(successor) = key.successor() {
                fields.text(name, &successor.key.0.to_string());
            }
        },
    ),
    of_record("sunset", "where the key was rotated, when it ends: RFC 3339, in UTC", |name, key, fields| {
        if let (Some(_), Expiry::At(end)) = (key.successor(), key.expiry) {
            fields.text(name, &rfc3339(end));
        }
    }),
    of_record("user_id", "`users.id`, as a string", |name, key, fields| {
        fields.text(name, &key.user.id.0.to_string());
    }),
    of_record("user", "`id`, `superuser`, `name`, `email`, `role`", |name, key, fields| {
        fields.object(name, |fields| put_user(&key.user, fields));
    }),
    of_record("key", "`id`, `prefix`, `scopes`, `tags`, `name`", |name, key, fields| {
        fields.object(name, |fields| put_key(key, fields));
    }),
    of_record("rate_limit", "the key's limits: `minute`, `hour`, `day`", |name, key, fields| {
        fields.object(name, |fields| put_limits(&key.limits, fields));
    }),
    of_record(
        "limit_minute",
        "the limit of a minute, as Envoy's rate-limit filter takes an override",
        |name, key, fields| put_override(name, key.limits.minute, "MINUTE", fields),
    ),
    of_record("limit_hour", "the same of an hour", |name, key, fields| {
        put_override(name, key.limits.hour, "HOUR", fields);
    }),
    of_record("limit_day", "the same of a day", |name, key, fields| {
        put_override(name, key.limits.day, "DAY", fields);
    }),
    of_check(
        "rate_limit_remaining",
        "where limits are counted, the remaining requests of each",
        |name, facts, fields| put_windows(name, facts.limit_status, |left| left.remaining, fields),
    ),
    of_check(
        "rate_limit_reset",
        "where limits are counted, seconds until each window ends",
        |name, facts, fields| put_windows(name, facts.limit_status, WindowStatus::reset_seconds, fields),
    ),
    of_check(
        "rate_limit_counted",
        "where limits are counted, by whom: `local`, `redis`, or `divided` while Redis does not answer",
        |name, facts, fields| {
            if let Some(limit_status) = facts.limit_status {
                fields.text(name, limit_status.counted.name());
            }
        },
    ),
];

impl<'a> CheckFacts<'a> {
    pub(super) fn new(proven: Option<&'a Proven>, request: &'a ParsedRequest<'_>) -> Self {
        Self {
            tier: proven.map(|proven| proven.tier),
            is_stale: proven.is_some_and(|proven| proven.stale),
            limit_status: proven.and_then(|proven| proven.limit_status.as_ref()),
            route_error: request.attributes.route.as_ref().err(),
            has_foreign_credential: !request.removal.foreign_headers.is_empty(),
        }
    }
}

/// Writes the fields that the outcome decides into a `CheckResponse`.
pub(super) fn put_outcome(response: &mut Vec<u8>, facts: &OutcomeFacts, sent: &FieldFilter) {
    put(response, sent, |field, fields| {
        if let Source::Outcome(write) = field.source {
            write(field.name, facts, fields);
        }
    });
}

/// Writes the fields that the record decides into a `CheckResponse`.
pub(super) fn put_record(response: &mut Vec<u8>, record: &KeyRecord, sent: &FieldFilter) {
    put(response, sent, |field, fields| {
        if let Source::Record(write) = field.source {
            write(field.name, record, fields);
        }
    });
}

/// Writes the fields that are different for each check into a `CheckResponse`.
pub(super) fn put_check(response: &mut Vec<u8>, facts: &CheckFacts<'_>, sent: &FieldFilter) {
    put(response, sent, |field, fields| {
        if let Source::Check(write) = field.source {
            write(field.name, facts, fields);
        }
    });
}

/// Writes one piece of the metadata: those fields that `write` writes.
fn put(response: &mut Vec<u8>, sent: &FieldFilter, write: impl Fn(&Field, &mut StructWriter<'_>)) {
    /// The number of the field in `CheckResponse` (envoy/service/auth/v3/external_auth.proto).
    const DYNAMIC_METADATA: u32 = 4;
    put_message(response, DYNAMIC_METADATA, |metadata| {
        let mut fields = StructWriter::new(metadata);
        for field in TABLE.iter().filter(|field| sent.has(field.name)) {
            write(field, &mut fields);
        }
    });
}

fn put_user(user: &User, fields: &mut StructWriter<'_>) {
    fields.number("id", user.id.0 as f64);
    fields.boolean("superuser", user.is_superuser);
    for (name, text) in [("name", &user.name), ("email", &user.email), ("role", &user.role)] {
        if let Some(text) = text {
            fields.text(name, text);
        }
    }
}

fn put_key(record: &KeyRecord, fields: &mut StructWriter<'_>) {
    fields.number("id", record.id.0 as f64);
    fields.text("prefix", record.prefix.as_str());
    fields.list("scopes", &record.scopes);
    fields.list("tags", &record.tags);
    if let Some(name) = &record.name {
        fields.text("name", name);
    }
}

fn put_limits(limits: &Limits, fields: &mut StructWriter<'_>) {
    for (window, limit) in [("minute", limits.minute), ("hour", limits.hour), ("day", limits.day)] {
        if let Some(limit) = limit {
            fields.number(window, limit as f64);
        }
    }
}

/// A limit as Envoy's rate-limit filter takes it for a descriptor: upper-case unit, and a number of type number.
fn put_override(name: &str, limit: Option<u64>, unit: &str, fields: &mut StructWriter<'_>) {
    let Some(limit) = limit else { return };
    fields.object(name, |fields| {
        fields.number("requests_per_unit", limit as f64);
        fields.text("unit", unit);
    });
}

/// A number of each window in which the key's requests are counted.
fn put_windows(
    name: &str,
    limit_status: Option<&LimitStatus>,
    number: fn(&WindowStatus) -> u64,
    fields: &mut StructWriter<'_>,
) {
    let Some(limit_status) = limit_status else { return };
    fields.object(name, |fields| {
        for (span, left) in limit_status.each() {
            fields.number(span.name(), number(&left) as f64);
        }
    });
}

const fn of_outcome(
    name: &'static str,
    about: &'static str,
    write: fn(&str, &OutcomeFacts, &mut StructWriter<'_>),
) -> Field {
    Field { name, about, source: Source::Outcome(write) }
}

const fn of_record(
    name: &'static str,
    about: &'static str,
    write: fn(&str, &KeyRecord, &mut StructWriter<'_>),
) -> Field {
    Field { name, about, source: Source::Record(write) }
}

const fn of_check(
    name: &'static str,
    about: &'static str,
    write: fn(&str, &CheckFacts<'_>, &mut StructWriter<'_>),
) -> Field {
    Field { name, about, source: Source::Check(write) }
}
