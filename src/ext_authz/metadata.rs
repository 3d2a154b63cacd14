//! The decision as dynamic metadata, for Envoy's access log, RBAC and rate-limit filters: every field in one
//! table.
//!
//! Envoy keeps it under `envoy.filters.http.ext_authz`, on allow and on deny.

use envoy_types::pb::google::protobuf::{ListValue, Struct, Value, value::Kind};

use super::{Chosen, rows::Rows};
use crate::{
    attributes::route::Misconfigured,
    decision::{Proven, Reason},
    limits::Left,
    record::{KeyRecord, Limits, User},
};

/// One field.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it says, for docs/reference/metadata.md.
    pub about: &'static str,
    pub(super) of: Of,
}

/// What a field is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Of {
    /// How it was decided, and on which record.
    Decision(fn(&Said<'_>) -> Option<Value>),
    /// Something of each window in which the key's requests are counted.
    Windows(fn(&Left) -> u64),
    /// Who counts.
    Counted,
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
    of_decision("decision", "`allow` or `deny`: what becomes of the request", |said| {
        Some(text(said.decision))
    }),
    of_decision("result", "as in `x-auth-result`", |said| Some(text(said.result))),
    of_decision("reason", "the code of the denial, also of one that shadow mode only reports", |said| {
        Some(text(said.reason?.code()))
    }),
    of_decision("route_error", "what Keystile cannot follow of the route's settings", |said| {
        Some(text(&said.route_error?.to_string()))
    }),
    of_decision("stale", "`true` when the key's time was up and the database did not answer", |said| {
        said.proven?.stale.then(|| boolean(true))
    }),
    of_decision("tier", "who had the record: `memory`, `redis` or `database`", |said| {
        Some(text(said.proven?.tier.name()))
    }),
    // A string: Envoy's rate-limit filters take no other kind as a descriptor.
    of_decision("key_id", "`api_keys.id`, as a string", |said| Some(text(&said.record()?.id.0.to_string()))),
    of_decision("user_id", "`users.id`, as a string", |said| {
        Some(text(&said.record()?.user.id.0.to_string()))
    }),
    of_decision("user", "`id`, `superuser`, `name`, `email`, `role`", |said| {
        Some(object(user(&said.record()?.user)))
    }),
    of_decision("key", "`id`, `prefix`, `scopes`, `tags`, `name`", |said| Some(object(key(said.record()?)))),
    of_decision("rate_limit", "the key's limits: `minute`, `hour`, `day`", |said| {
        Some(object(rate_limit(&said.record()?.limits)))
    }),
    of_decision(
        "limit_minute",
        "the limit of a minute, as Envoy's rate-limit filter takes an override",
        |said| Some(limit(said.record()?.limits.minute?, "MINUTE")),
    ),
    of_decision("limit_hour", "the same of an hour", |said| Some(limit(said.record()?.limits.hour?, "HOUR"))),
    of_decision("limit_day", "the same of a day", |said| Some(limit(said.record()?.limits.day?, "DAY"))),
    of_windows("rate_limit_remaining", "where limits are counted, what is left of each", |left| {
        left.remaining
    }),
    of_windows("rate_limit_reset", "where limits are counted, seconds until each begins anew", |left| {
        left.reset_seconds()
    }),
    Field {
        name: "rate_limit_counted",
        about: "where limits are counted, by whom: `local`, `redis`, or `divided` while Redis does not answer",
        of: Of::Counted,
    },
];

impl Field {
    fn value(&self, said: &Said<'_>) -> Option<Value> {
        match self.of {
            Of::Decision(value) => value(said),
            Of::Windows(number_of) => {
                let windows = said.proven?.standing.as_ref()?.each();
                Some(object(windows.map(|(span, left)| (span.name(), number(number_of(&left) as f64)))))
            }
            Of::Counted => Some(text(said.proven?.standing.as_ref()?.counted.name())),
        }
    }

    /// Whether it says something else after each request of a key with limits.
    fn is_counted(&self) -> bool {
        !matches!(self.of, Of::Decision(_))
    }
}

const fn of_decision(
    name: &'static str,
    about: &'static str,
    value: fn(&Said<'_>) -> Option<Value>,
) -> Field {
    Field { name, about, of: Of::Decision(value) }
}

const fn of_windows(name: &'static str, about: &'static str, value: fn(&Left) -> u64) -> Field {
    Field { name, about, of: Of::Windows(value) }
}

impl Said<'_> {
    /// As Envoy takes it.
    pub(super) fn to_struct(self, rows: Rows, chosen: &Chosen) -> Struct {
        let fields = TABLE.iter().filter(|field| rows.have(field.is_counted()) && chosen.has(field.name));
        structure(fields.filter_map(|field| Some((field.name, field.value(&self)?))))
    }

    fn record(&self) -> Option<&KeyRecord> {
        Some(&self.proven?.record)
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
