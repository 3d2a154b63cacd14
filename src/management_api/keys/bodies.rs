//! What the bodies of requests for keys say: a new key, a rotation, a request to explain.

use axum::http::StatusCode;
use serde_json::{Map, Value};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::has_user;
use crate::{
    clock,
    config::moment::{self, MomentError},
    explanation::ImaginedRequest,
    management_api::{
        access::Scope,
        authentication::Session,
        body::nothing_else,
        problem::{Answer, Problem},
    },
    record::{Limits, UserId},
    store::{KeyRotation, KeyTemplate, NewKey, Patch, Resource},
};

/// Columns that are set when a key is created.
const NEW: [&str; 16] = [
    "name",
    "description",
    "expires_at",
    "scopes",
    "tags",
    "allowed_models",
    "allowed_endpoints",
    "allowed_ips",
    "allowed_chatbots",
    "allowed_agents",
    "allowed_extract_templates",
    "rate_limit_per_minute",
    "rate_limit_per_hour",
    "rate_limit_per_day",
    "budget_limit_cents",
    "budget_type",
];

/// The longest overlap that a user may choose.
const MAX_OWN_OVERLAP: time::Duration = time::Duration::days(30);

/// Fields that a user chooses for a key of a template.
const OWN: [&str; 3] = ["name", "description", "expires_at"];

impl Session {
    pub(super) fn rotation(&self, mut members: Map<String, Value>) -> Answer<KeyRotation> {
        let mut text = |name: &str| match members.remove(name) {
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
            Some(Value::Null) | None => Ok(None),
            Some(_) => Err(Problem::invalid(name, format!("{name}: is not a text, or empty"))),
        };
        let (overlap, expires_at, name) = (text("overlap")?, text("expires_at")?, text("name")?);
        nothing_else(&members)?;
        let ends_at = match overlap.as_deref() {
            None | Some("0" | "0s") => None,
            Some(text) => Some(later("overlap", text)?),
        };
        let expires_at = expires_at.map(|text| later("expires_at", &text)).transpose()?;
        if self.caller.scope.owner().is_some() {
            if expires_at.is_some() {
                // The key's own expiry may be an operator's decision.
                return Err(beyond("expires_at", "a successor expires when the key would have"));
            }
            if ends_at.is_some_and(|end| end > clock::wall() + MAX_OWN_OVERLAP) {
                return Err(beyond("overlap", "is over 30 days"));
            }
        }
        Ok(KeyRotation { ends_at, expires_at, name })
    }

    pub(super) fn imagined(&self, mut members: Map<String, Value>) -> Answer<ImaginedRequest> {
        let mut text = |name: &str| match members.remove(name) {
            Some(Value::String(text)) => Ok(Some(text)),
            Some(Value::Null) | None => Ok(None),
            Some(_) => Err(Problem::invalid(name, format!("{name}: is not a text"))),
        };
        let (method, path, model) = (text("method")?, text("path")?, text("model")?);
        let client = text("client")?.map(|text| text.parse());
        let client = client.transpose().map_err(|_| Problem::invalid("client", "client: is no address"))?;
        let at = text("at")?.map(|text| OffsetDateTime::parse(&text, &Rfc3339)).transpose();
        let at = at.map_err(|_| Problem::invalid("at", "at: is not a time such as 2030-12-31T23:59:59Z"))?;
        let route = match members.remove("route") {
            Some(Value::Object(route)) => route,
            Some(Value::Null) | None => Map::new(),
            Some(_) => return Err(Problem::invalid("route", "route: is no object")),
        };
        let route = route.into_iter().map(|(name, value)| match value {
            Value::String(value) => Ok((name, value)),
            _ => Err(Problem::invalid("route", format!("route: {name} is not a text"))),
        });
        let route = route.collect::<Result<_, _>>()?;
        nothing_else(&members)?;
        Ok(ImaginedRequest {
            method,
            path: path.unwrap_or_else(|| "/".to_owned()),
            client,
            model,
            body: None,
            envoy_sends_body: true,
            route,
            at,
            mode: self.api.0.mode,
            rate_limit: self.api.0.counted,
        })
    }

    pub(super) async fn new_key(&self, mut members: Map<String, Value>) -> Answer<NewKey> {
        let user = match members.remove("user") {
            Some(Value::String(user)) => Some(user),
            Some(Value::Number(id)) => Some(id.to_string()),
            Some(Value::Null) | None => None,
            Some(_) => return Err(Problem::invalid("user", "user: is neither an id nor an email address")),
        };
        members.retain(|_, value| !value.is_null());
        if let Scope::Own { user: owner, template: Some(template) } = &self.caller.scope {
            return own_key(members, user, *owner, template);
        }
        let user = user.ok_or_else(|| Problem::invalid("user", "user: is missing"))?;
        if let Some(other) = members.keys().find(|name| !NEW.contains(&name.as_str())) {
            // Unknown fields are named by the patch.
            Patch::new(Resource::Key, members.clone())?;
            let detail = format!("{other}: cannot be set when a key is created; change the key afterwards");
            return Err(Problem::invalid(other, detail));
        }
        if !has_user(&self.database(), &user).await? {
            return Err(Problem::invalid("user", "user: there is no such user"));
        }
        fields(user, members, None)
    }
}

/// A key of a user's own, as the template has it.
fn own_key(
    mut members: Map<String, Value>,
    user: Option<String>,
    UserId(owner): UserId,
    template: &KeyTemplate,
) -> Answer<NewKey> {
    if user.is_some_and(|user| user != owner.to_string()) {
        return Err(beyond("user", "the scope own creates keys of its own user"));
    }
    if let Some(other) = members.keys().find(|name| !OWN.contains(&name.as_str())) {
        return Err(beyond(other, "is fixed by the token"));
    }
    let latest = template
        .max_lifetime
        .and_then(|seconds| clock::wall().checked_add(time::Duration::seconds(i64::try_from(seconds).ok()?)));
    members.extend(template.fields.clone());
    let mut new = fields(owner.to_string(), members, Some(template.max_keys))?;
    if let Some(latest) = latest {
        if new.expires_at.is_some_and(|end| end > latest) {
            return Err(beyond("expires_at", "is later than the token allows"));
        }
        new.expires_at = new.expires_at.or(Some(latest));
    }
    Ok(new)
}

/// A key with these fields, whose values are checked.
fn fields(user: String, members: Map<String, Value>, max_keys: Option<u32>) -> Answer<NewKey> {
    let members = Patch::new(Resource::Key, members)?.into_fields();
    let text = |name: &str| members.get(name).and_then(Value::as_str).map(str::to_owned);
    let list = |name: &str| {
        let entries = members.get(name).and_then(Value::as_array).into_iter().flatten();
        let entries = entries.map(|entry| entry.as_str().map_or_else(|| entry.to_string(), str::to_owned));
        entries.collect::<Vec<_>>()
    };
    let number = |name: &str| members.get(name).and_then(Value::as_u64);
    let expires_at = match text("expires_at") {
        Some(text) => Some(future("expires_at", &text)?),
        None => None,
    };
    Ok(NewKey {
        user,
        name: text("name"),
        description: text("description"),
        expires_at,
        scopes: list("scopes"),
        tags: list("tags"),
        models: list("allowed_models"),
        endpoints: list("allowed_endpoints"),
        ips: list("allowed_ips"),
        chatbots: list("allowed_chatbots"),
        agents: list("allowed_agents"),
        extract_templates: list("allowed_extract_templates"),
        limits: Limits {
            minute: number("rate_limit_per_minute"),
            hour: number("rate_limit_per_hour"),
            day: number("rate_limit_per_day"),
        },
        budget_limit_cents: members.get("budget_limit_cents").and_then(Value::as_i64),
        budget_type: text("budget_type"),
        max_keys,
    })
}

/// What a token of the scope `own` does not allow.
fn beyond(field: &str, detail: &str) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "forbidden", format!("{field}: {detail}")).of_field(field)
}

/// A time that is to come, or its distance from now.
fn later(field: &str, text: &str) -> Answer<OffsetDateTime> {
    let now = clock::wall();
    let problem = match moment::ahead(text, now) {
        Ok(end) if end <= now => "is in the past",
        Ok(end) if end.year() <= 9999 => return Ok(end),
        Ok(_) | Err(MomentError::Distance) => "is too far away",
        Err(MomentError::Form) => moment::FORM,
    };
    Err(Problem::invalid(field, format!("{field}: {problem}")))
}

/// A time that is to come.
fn future(field: &str, text: &str) -> Answer<OffsetDateTime> {
    let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
        Problem::invalid(field, format!("{field}: is not a time such as 2030-12-31T23:59:59Z"))
    })?;
    let time = time.to_offset(time::UtcOffset::UTC);
    if time <= clock::wall() {
        return Err(Problem::invalid(field, format!("{field}: is in the past")));
    }
    Ok(time)
}
