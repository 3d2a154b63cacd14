//! The decision as dynamic metadata, for Envoy's access log, RBAC and rate-limit filters: every field in one
//! table.
//!
//! Envoy keeps it under `envoy.filters.http.ext_authz`, on allow and on deny.

use envoy_types::pb::google::protobuf::{ListValue, Struct, Value, value::Kind};

use super::Chosen;
use crate::{
    attributes::route::Misconfigured,
    decision::{Proven, Reason},
    limits::{Left, Standing},
    record::{KeyRecord, Limits, User},
};

/// One field.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it says, for the README.
    pub about: &'static str,
    value: fn(&Said<'_>) -> Option<Value>,
}

/// What is said of a decision.
#[derive(Debug, Clone, Copy)]
pub struct Said<'a> {
    /// `allow` or `deny`: what becomes of the request.
    pub(super) decision: &'static str,
    /// As the upstream is told it: `allow`, `anonymous`, or the code of a denial, also of one that
    /// shadow mode only reports.
    pub(super) result: &'static str,
    /// Why it is denied, or would be.
    pub(super) reason: Option<Reason>,
    /// The key, if one was proven.
    pub(super) proven: Option<&'a Proven>,
    /// What is wrong with the route's settings.
    pub(super) route_error: Option<&'a Misconfigured>,
}

/// All of them, in the order in which they are documented.
pub const TABLE: &[Field] = &[
    Field {
        name: "decision",
        about: "`allow` or `deny`: what becomes of the request",
        value: |said| Some(text(said.decision)),
    },
    Field { name: "result", about: "as in `x-auth-result`", value: |said| Some(text(said.result)) },
    Field {
        name: "reason",
        about: "the code of the denial, also of one that shadow mode only reports",
        value: |said| Some(text(said.reason?.code())),
    },
    Field {
        name: "route_error",
        about: "what Keystile cannot follow of the route's settings",
        value: |said| Some(text(&said.route_error?.to_string())),
    },
    Field {
        name: "stale",
        about: "`true` when the key's time was up and the database did not answer",
        value: |said| said.proven?.stale.then(|| boolean(true)),
    },
    Field {
        name: "tier",
        about: "who had the record: `memory`, `redis` or `database`",
        value: |said| Some(text(said.proven?.tier.name())),
    },
    // A string: Envoy's rate-limit filters take no other kind as a descriptor.
    Field {
        name: "key_id",
        about: "`api_keys.id`, as a string",
        value: |said| Some(text(&said.record()?.id.0.to_string())),
    },
    Field {
        name: "user_id",
        about: "`users.id`, as a string",
        value: |said| Some(text(&said.record()?.user.id.0.to_string())),
    },
    Field {
        name: "user",
        about: "`id`, `superuser`, `name`, `email`, `role`",
        value: |said| Some(object(user(&said.record()?.user))),
    },
    Field {
        name: "key",
        about: "`id`, `prefix`, `scopes`, `tags`, `name`",
        value: |said| Some(object(key(said.record()?))),
    },
    Field {
        name: "rate_limit",
        about: "the key's limits: `minute`, `hour`, `day`",
        value: |said| Some(object(rate_limit(&said.record()?.limits))),
    },
    Field {
        name: "limit_minute",
        about: "the limit of a minute, as Envoy's rate-limit filter takes an override",
        value: |said| Some(limit(said.record()?.limits.minute?, "MINUTE")),
    },
    Field {
        name: "limit_hour",
        about: "the same of an hour",
        value: |said| Some(limit(said.record()?.limits.hour?, "HOUR")),
    },
    Field {
        name: "limit_day",
        about: "the same of a day",
        value: |said| Some(limit(said.record()?.limits.day?, "DAY")),
    },
    Field {
        name: "rate_limit_remaining",
        about: "where limits are counted, what is left of each",
        value: |said| Some(left(said.standing()?, |left| left.remaining)),
    },
    Field {
        name: "rate_limit_reset",
        about: "where limits are counted, seconds until each begins anew",
        value: |said| Some(left(said.standing()?, |left| left.reset_seconds())),
    },
    Field {
        name: "rate_limit_counted",
        about: "where limits are counted, by whom: `local`, `redis`, or `divided` while Redis does not answer",
        value: |said| Some(text(said.standing()?.counted.name())),
    },
];

impl Said<'_> {
    /// As Envoy takes it.
    pub(super) fn to_struct(self, chosen: &Chosen) -> Struct {
        let fields = TABLE.iter().filter(|field| chosen.has(field.name));
        structure(fields.filter_map(|field| Some((field.name, (field.value)(&self)?))))
    }

    fn record(&self) -> Option<&KeyRecord> {
        Some(&self.proven?.record)
    }

    fn standing(&self) -> Option<&Standing> {
        self.proven?.standing.as_ref()
    }
}

fn user(user: &User) -> Vec<(&'static str, Value)> {
    let mut fields = vec![("id", number(user.id.0 as f64)), ("superuser", boolean(user.is_superuser))];
    fields.extend(user.name.as_deref().map(|name| ("name", text(name))));
    fields.extend(user.email.as_deref().map(|email| ("email", text(email))));
    fields.extend(user.role.as_deref().map(|role| ("role", text(role))));
    fields
}

fn key(record: &KeyRecord) -> Vec<(&'static str, Value)> {
    let mut fields = vec![
        ("id", number(record.id.0 as f64)),
        ("prefix", text(record.prefix.as_str())),
        ("scopes", list(&record.scopes)),
        ("tags", list(&record.tags)),
    ];
    fields.extend(record.name.as_deref().map(|name| ("name", text(name))));
    fields
}

fn rate_limit(limits: &Limits) -> Vec<(&'static str, Value)> {
    let windows = [("minute", limits.minute), ("hour", limits.hour), ("day", limits.day)];
    windows.into_iter().filter_map(|(window, limit)| Some((window, number(limit? as f64)))).collect()
}

/// Something of each window that is counted.
fn left(standing: &Standing, number_of: impl Fn(&Left) -> u64) -> Value {
    object(standing.each().map(|(span, left)| (span.name(), number(number_of(&left) as f64))))
}

/// The shape in which Envoy's rate-limit filter takes a limit per descriptor: upper-case unit,
/// and a number that is one.
fn limit(limit: u64, unit: &str) -> Value {
    object([("requests_per_unit", number(limit as f64)), ("unit", text(unit))])
}

fn structure(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Struct {
    Struct { fields: fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

fn object(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    value(Kind::StructValue(structure(fields)))
}

fn list(items: &[String]) -> Value {
    value(Kind::ListValue(ListValue { values: items.iter().map(|item| text(item)).collect() }))
}

fn text(text: &str) -> Value {
    value(Kind::StringValue(text.to_owned()))
}

fn number(number: f64) -> Value {
    value(Kind::NumberValue(number))
}

fn boolean(truth: bool) -> Value {
    value(Kind::BoolValue(truth))
}

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}
