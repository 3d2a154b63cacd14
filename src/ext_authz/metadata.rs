//! The decision as dynamic metadata, for Envoy's access log, RBAC and rate-limit filters.
//!
//! Envoy keeps it under `envoy.filters.http.ext_authz`, on allow and on deny.

use envoy_types::pb::google::protobuf::{ListValue, Struct, Value, value::Kind};

use crate::{
    attributes::route::Misconfigured,
    config::MetadataDetail,
    decision::{Proven, Reason},
    limits::Standing,
    record::{KeyRecord, Limits, User},
};

/// What is said of a decision.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said<'a> {
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

impl Said<'_> {
    /// As Envoy takes it.
    pub(super) fn to_struct(self, detail: MetadataDetail) -> Struct {
        let mut fields = vec![("decision", text(self.decision)), ("result", text(self.result))];
        fields.extend(self.reason.map(|reason| ("reason", text(reason.code()))));
        fields.extend(self.route_error.map(|error| ("route_error", text(&error.to_string()))));
        if let Some(Proven { record, tier, stale, standing }) = self.proven {
            fields.extend(stale.then(|| ("stale", boolean(true))));
            fields.push(("tier", text(tier.name())));
            // A string: Envoy's rate-limit filters take no other kind as a descriptor.
            fields.push(("key_id", text(&record.id.0.to_string())));
            fields.push(("user_id", text(&record.user.id.0.to_string())));
            if detail == MetadataDetail::Full {
                fields.push(("user", object(user(&record.user))));
                fields.push(("key", object(key(record))));
            }
            fields.push(("rate_limit", object(rate_limit(&record.limits))));
            fields.extend(overrides(&record.limits));
            fields.extend(standing.iter().flat_map(left));
        }
        structure(fields)
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

/// What is left, where limits are counted, and by whom.
fn left(standing: &Standing) -> [(&'static str, Value); 3] {
    let remaining = standing.each().map(|(span, left)| (span.name(), number(left.remaining as f64)));
    let reset = standing.each().map(|(span, left)| (span.name(), number(left.reset_seconds() as f64)));
    [
        ("rate_limit_remaining", object(remaining)),
        ("rate_limit_reset", object(reset)),
        ("rate_limit_counted", text(standing.counted.name())),
    ]
}

/// The shape in which Envoy's rate-limit filter takes a limit per descriptor: upper-case unit,
/// and a number that is one.
fn overrides(limits: &Limits) -> impl Iterator<Item = (&'static str, Value)> {
    let windows = [
        ("limit_minute", limits.minute, "MINUTE"),
        ("limit_hour", limits.hour, "HOUR"),
        ("limit_day", limits.day, "DAY"),
    ];
    windows.into_iter().filter_map(|(name, limit, unit)| {
        let limit = [("requests_per_unit", number(limit? as f64)), ("unit", text(unit))];
        Some((name, object(limit)))
    })
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
