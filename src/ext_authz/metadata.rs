//! The decision as dynamic metadata, for Envoy's access log, RBAC and rate-limit filters.
//!
//! Envoy keeps it under `envoy.filters.http.ext_authz`, on allow and on deny.

use envoy_types::pb::google::protobuf::{ListValue, Struct, Value, value::Kind};

use crate::{
    decision::{Permit, Reason},
    record::{KeyRecord, Limits, User},
};

/// What is said of a decision; `permit` is the key, where one was proven.
pub(super) fn of(decision: &str, reason: Option<Reason>, permit: Option<&Permit>) -> Struct {
    let mut fields = vec![("decision", text(decision))];
    fields.extend(reason.map(|reason| ("reason", text(reason.code()))));
    if let Some(Permit { record, tier }) = permit {
        fields.push(("tier", text(tier.name())));
        // A string: Envoy's rate-limit filters take no other kind as a descriptor.
        fields.push(("key_id", text(&record.id.0.to_string())));
        fields.push(("user_id", text(&record.user.id.0.to_string())));
        fields.push(("user", object(user(&record.user))));
        fields.push(("key", object(key(record))));
        fields.push(("rate_limit", object(rate_limit(&record.limits))));
        fields.extend(overrides(&record.limits));
    }
    structure(fields)
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
