//! Keys: list, get, create, update, rotate, revoke, explain, identify.

use axum::{
    Json,
    body::Bytes,
    extract::Path,
    http::{HeaderMap, Method, StatusCode, Uri, header::ETAG},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use zeroize::Zeroizing;

use super::{
    access::{Operation, Scope},
    authentication::Session,
    body::{JsonBody, PatchBody},
    changes::{ChangeRequest, IdempotencyKey, Made, etag_of, to_json},
    problem::{Answer, Problem},
    query::Parameters,
    resource::{
        CredentialBody, ExplainBody, ExplanationBody, Key, KeyList, KeyPatch, NewKeyBody, RotatedKeyBody,
        RotationBody,
    },
    wait::Changed,
};
use crate::{
    clock,
    credential::Credential,
    explanation::ImaginedRequest,
    record::{Limits, UserId},
    store::{
        Database, DisplayRow, KeyRotation, KeyTemplate, NewKey, Patch, Resource, RevokedKeys, RotatedKey,
        RowVersion,
    },
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

/// Lists keys, a page at a time.
#[utoipa::path(
    get, path = "/v1/keys", tag = "keys", operation_id = "list_keys",
    params(
        ("user" = Option<String>, Query, description = "Id or email of the user"),
        ("tag" = Option<Vec<String>>, Query, description = "A tag that the key has; repeatable"),
        ("prefix" = Option<String>, Query, description = "The beginning of the key's prefix"),
        ("unused_since" = Option<String>, Query, description = "Not used since this time, or for this duration, such as 90d"),
        ("expiring_before" = Option<String>, Query, description = "Expires before this time, or within this duration"),
        ("expired" = Option<bool>, Query, description = "Only keys that have expired"),
        ("state" = Option<String>, Query, description = "`active` (the default), `revoked` or `all`"),
        ("sort" = Option<String>, Query, description = "`created` (the default, newest first), `last-used`, `expires` or `name`"),
        ("reverse" = Option<bool>, Query, description = "The other direction"),
        ("limit" = Option<u32>, Query, description = "Keys in a page: 1 to 200, 50 by default"),
        ("after" = Option<String>, Query, description = "Where the page before ended: its `next`"),
    ),
    responses((status = 200, description = "A page", body = KeyList)),
    security(("token" = []), ("certificate" = []))
)]
pub(super) async fn list(session: Session, mut parameters: Parameters) -> Answer<Response> {
    session.may(Operation::ListKeys)?;
    let mut filter = parameters.take_filter()?;
    let page = parameters.take_page()?;
    parameters.finish()?;
    let database = session.database();
    if let Some(UserId(owner)) = session.caller.scope.owner() {
        if filter.user.as_ref().is_some_and(|user| *user != owner.to_string()) {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "forbidden",
                "user: the scope own lists the keys of its own user",
            )
            .of_field("user"));
        }
        filter.user = Some(owner.to_string());
    } else if let Some(user) = &filter.user
        && !has_user(&database, user).await?
    {
        return Err(Problem::invalid("user", "user: there is no such user"));
    }
    let page = database.list_keys(&filter, &page).await?;
    let next = page.next.map(|next| next.to_string());
    Ok(Json(json!({ "keys": page.keys, "next": next })).into_response())
}

/// Reads a key.
#[utoipa::path(
    get, path = "/v1/keys/{id}", tag = "keys", operation_id = "get_key",
    params(("id" = i64, Path, description = "Number of the key")),
    responses((status = 200, description = "The key", body = Key)),
    security(("token" = []), ("certificate" = []))
)]
pub(super) async fn get(
    session: Session,
    Path(id): Path<String>,
    parameters: Parameters,
) -> Answer<Response> {
    session.may(Operation::GetKey)?;
    parameters.finish()?;
    let key = session.key(&id).await?;
    Ok(with_etag(to_json(&session.database().with_chain(key).await?)?))
}

/// Creates a key. Its credential is in this answer alone.
#[utoipa::path(
    post, path = "/v1/keys", tag = "keys", operation_id = "create_key",
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "A text of the caller's choice: a second request with it creates no second key"),
        ("wait" = Option<String>, Query, description = "How long to wait for the instances, such as 5s"),
    ),
    request_body = NewKeyBody,
    responses(
        (status = 201, description = "The key with its credential", body = Key),
        (status = 202, description = "Created, but not confirmed by each instance in time", body = Key),
    ),
    security(("token" = []), ("certificate" = []))
)]
pub(super) async fn create(
    session: Session,
    uri: Uri,
    headers: HeaderMap,
    mut parameters: Parameters,
    body: JsonBody,
) -> Answer<Response> {
    session.may(Operation::CreateKey)?;
    let request =
        ChangeRequest::new(Operation::CreateKey, Method::POST, &uri, &headers, &mut parameters, &body.0)?;
    parameters.finish()?;
    let new = session.new_key(body.object()?).await?;
    let api = &session.api.0;
    let create = async |database: Database| {
        let _core = session.core().await?;
        let (key, credential) = database.create_key(&new, &api.brand, api.cost).await?;
        let secret: (&[&str], _) = (&["credential"], Zeroizing::new(credential.expose().to_owned()));
        Ok(Made { status: StatusCode::CREATED, body: to_json(&key)?, secret: Some(secret) })
    };
    let again = async |database: Database, created: Option<i64>| {
        let id = created.ok_or_else(|| Problem::not_found("key"))?;
        Made::row(StatusCode::CREATED, &database.find_key(&id.to_string()).await?)
    };
    session.change(request, create, again).await
}

/// Changes a key. With `If-Match`, only if its version is still that one.
#[utoipa::path(
    patch, path = "/v1/keys/{id}", tag = "keys", operation_id = "update_key",
    params(
        ("id" = i64, Path, description = "Number of the key"),
        ("If-Match" = Option<String>, Header, description = "The `ETag` of the key as the caller has read it"),
        ("Idempotency-Key" = Option<String>, Header, description = "A text of the caller's choice: a second request with it changes nothing"),
        ("wait" = Option<String>, Query, description = "How long to wait for the instances, such as 5s"),
    ),
    request_body(content = KeyPatch, content_type = "application/merge-patch+json"),
    responses(
        (status = 200, description = "The key", body = Key),
        (status = 202, description = "Changed, but not confirmed by each instance in time", body = Key),
    ),
    security(("token" = []), ("certificate" = []))
)]
pub(super) async fn update(
    session: Session,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    mut parameters: Parameters,
    body: PatchBody,
) -> Answer<Response> {
    session.may(Operation::UpdateKey)?;
    let request =
        ChangeRequest::new(Operation::UpdateKey, Method::PATCH, &uri, &headers, &mut parameters, &body.0)?;
    parameters.finish()?;
    let patch = Patch::new(Resource::Key, body.object()?)?;
    let key = session.key(&id).await?;
    let version = if_match(&headers, &key)?;
    let again = async |database: Database, _| Made::row(StatusCode::OK, &database.find_key(&id).await?);
    let update = async |database: Database| {
        Made::row(StatusCode::OK, &database.update_key(&id, &patch, version).await?.after)
    };
    session.change(request, update, again).await
}

/// Rotates a key: creates a successor with the same owner, policy, limits and budgets, and lets the key end. The
/// successor's credential is in this answer alone.
#[utoipa::path(
    post, path = "/v1/keys/{id}/rotate", tag = "keys", operation_id = "rotate_key",
    params(
        ("id" = i64, Path, description = "Number of the key"),
        ("Idempotency-Key" = Option<String>, Header, description = "A text of the caller's choice: a second request with it creates no second successor"),
        ("wait" = Option<String>, Query, description = "How long to wait for the instances, such as 5s"),
    ),
    request_body = RotationBody,
    responses(
        (status = 201, description = "Both keys, with the credential of the successor", body = RotatedKeyBody),
        (status = 202, description = "Rotated, but not confirmed by each instance in time", body = RotatedKeyBody),
    ),
    security(("token" = []), ("certificate" = []))
)]
pub(super) async fn rotate(
    session: Session,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    mut parameters: Parameters,
    body: JsonBody,
) -> Answer<Response> {
    session.may(Operation::RotateKey)?;
    let request =
        ChangeRequest::new(Operation::RotateKey, Method::POST, &uri, &headers, &mut parameters, &body.0)?;
    let request = ChangeRequest { waits_for: (Changed::Key, &["predecessor"]), ..request };
    parameters.finish()?;
    let rotation = session.rotation(body.object()?)?;
    session.key(&id).await?;
    let api = &session.api.0;
    let rotate = async |database: Database| {
        let _core = session.core().await?;
        let RotatedKey { predecessor, successor, credential } =
            database.rotate_key(&id, &rotation, &api.brand, api.cost).await?;
        let secret: (&[&str], _) =
            (&["successor", "credential"], Zeroizing::new(credential.expose().to_owned()));
        let body = json!({ "predecessor": to_json(&predecessor)?, "successor": to_json(&successor)? });
        Ok(Made { status: StatusCode::CREATED, body, secret: Some(secret) })
    };
    let again = async |database: Database, _| {
        let predecessor = database.describe_key(&id).await?;
        let successor = database.describe_key(&predecessor.text("rotated_to")).await?;
        let body = json!({ "predecessor": to_json(&predecessor)?, "successor": to_json(&successor)? });
        Ok(Made { status: StatusCode::CREATED, body, secret: None })
    };
    session.change(request, rotate, again).await
}

/// Revokes a key, and every key that it was rotated from or to.
#[utoipa::path(
    post, path = "/v1/keys/{id}/revoke", tag = "keys", operation_id = "revoke_key",
    params(
        ("id" = i64, Path, description = "Number of the key"),
        ("Idempotency-Key" = Option<String>, Header, description = "A text of the caller's choice"),
        ("only" = Option<bool>, Query, description = "Only this key, and none that it was rotated from or to"),
        ("wait" = Option<String>, Query, description = "How long to wait for the instances, such as 5s"),
    ),
    responses(
        (status = 200, description = "The key", body = Key),
        (status = 202, description = "Revoked, but not confirmed by each instance in time", body = Key),
    ),
    security(("token" = []), ("certificate" = []))
)]
pub(super) async fn revoke(
    session: Session,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    mut parameters: Parameters,
) -> Answer<Response> {
    session.may(Operation::RevokeKey)?;
    let only = parameters.take_flag("only")?;
    // Part of the request, as a body would be.
    let meaning = Bytes::from_static(if only { b"only" } else { b"" });
    let request =
        ChangeRequest::new(Operation::RevokeKey, Method::POST, &uri, &headers, &mut parameters, &meaning)?;
    parameters.finish()?;
    session.key(&id).await?;
    let again = async |database: Database, _| Made::row(StatusCode::OK, &database.describe_key(&id).await?);
    let revoke = async |database: Database| {
        let RevokedKeys { key, others } = database.revoke_key(&id, only).await?;
        let ids: Vec<_> = others.iter().map(|other| other.get("id").clone()).collect();
        let key = if ids.is_empty() { key } else { key.with("also_revoked", ids) };
        Made::row(StatusCode::OK, &key)
    };
    session.change(request, revoke, again).await
}

/// Explains, check by check, what a request with a key would get. Nothing is changed.
#[utoipa::path(
    post, path = "/v1/keys/{id}/explain", tag = "keys", operation_id = "explain_key",
    params(("id" = i64, Path, description = "Number of the key")),
    request_body = ExplainBody,
    responses((status = 200, description = "The explanation", body = ExplanationBody)),
    security(("token" = []), ("certificate" = []))
)]
pub(super) async fn explain(
    session: Session,
    Path(id): Path<String>,
    parameters: Parameters,
    body: JsonBody,
) -> Answer<Response> {
    session.may(Operation::ExplainKey)?;
    parameters.finish()?;
    let request = session.imagined(body.object()?)?;
    let key = session.key(&id).await?;
    let database = session.database().with_account_lock(session.api.0.account_lock);
    let explanation = request.explain(&database, &key).await?;
    Ok(Json(explanation).into_response())
}

/// Finds the key of a credential.
#[utoipa::path(
    post, path = "/v1/keys/identify", tag = "keys", operation_id = "identify_key",
    request_body = CredentialBody,
    responses((status = 200, description = "The key", body = Key)),
    security(("token" = []), ("certificate" = []))
)]
pub(super) async fn identify(session: Session, parameters: Parameters, body: JsonBody) -> Answer<Response> {
    session.may(Operation::IdentifyKey)?;
    parameters.finish()?;
    let mut members = body.object()?;
    let credential = match members.remove("credential") {
        Some(Value::String(text)) => Zeroizing::new(text),
        _ => return Err(Problem::invalid("credential", "credential: is not a text")),
    };
    nothing_else(&members)?;
    let credential = Credential::parse(credential.as_bytes())
        .map_err(|_| Problem::invalid("credential", "credential: is no API key"))?;
    let _core = session.core().await?;
    let key = session.database().identify(&credential).await?;
    let key = key.ok_or_else(|| Problem::not_found("key"))?;
    Ok(with_etag(to_json(&key)?))
}

impl Session {
    /// The key of this number, if it exists for the caller.
    pub(super) async fn key(&self, id: &str) -> Answer<DisplayRow> {
        let not_found = || Problem::not_found("key");
        let number =
            id.parse::<i64>().ok().filter(|number| number.to_string() == id).ok_or_else(not_found)?;
        let keys = self.database().find_keys(id).await?;
        let key = keys.into_iter().find(|key| key.get("id").as_i64() == Some(number));
        key.filter(|key| self.reaches(key.get("user_id"))).ok_or_else(not_found)
    }

    /// A core for a bcrypt computation.
    pub(super) async fn core(&self) -> Answer<tokio::sync::SemaphorePermit<'_>> {
        const DEADLINE: std::time::Duration = std::time::Duration::from_secs(5);
        match tokio::time::timeout(DEADLINE, self.api.0.bcrypt.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(Problem::overloaded()),
        }
    }

    fn rotation(&self, mut members: Map<String, Value>) -> Answer<KeyRotation> {
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

    fn imagined(&self, mut members: Map<String, Value>) -> Answer<ImaginedRequest> {
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

    async fn new_key(&self, mut members: Map<String, Value>) -> Answer<NewKey> {
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

/// A time that is to come, or a duration from now.
fn later(field: &str, text: &str) -> Answer<OffsetDateTime> {
    if let Ok(span) = humantime::parse_duration(text) {
        let end = time::Duration::try_from(span).ok().and_then(|span| clock::wall().checked_add(span));
        return end
            .filter(|end| end.year() <= 9999 && *end > clock::wall())
            .ok_or_else(|| Problem::invalid(field, format!("{field}: is no time to come, or too far away")));
    }
    future(field, text)
}

/// A time that is to come.
pub(super) fn future(field: &str, text: &str) -> Answer<OffsetDateTime> {
    let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
        Problem::invalid(field, format!("{field}: is not a time such as 2030-12-31T23:59:59Z"))
    })?;
    let time = time.to_offset(time::UtcOffset::UTC);
    if time <= clock::wall() {
        return Err(Problem::invalid(field, format!("{field}: is in the past")));
    }
    Ok(time)
}

/// Refuses members that are left.
pub(super) fn nothing_else(members: &Map<String, Value>) -> Answer<()> {
    match members.keys().next() {
        Some(name) => Err(Problem::invalid(name, format!("{name}: is no field of this request"))),
        None => Ok(()),
    }
}

async fn has_user(database: &Database, user: &str) -> Answer<bool> {
    Ok(!database.find_users(user).await?.is_empty())
}

pub(super) fn with_etag(body: Value) -> Response {
    let etag = etag_of(&body);
    let mut answer = Json(body).into_response();
    answer.headers_mut().extend(etag.map(|etag| (ETAG, etag)));
    answer
}

/// The version that the row must have, by the header `If-Match`.
pub(super) fn if_match(headers: &HeaderMap, row: &DisplayRow) -> Answer<Option<RowVersion>> {
    let mut values = headers.get_all("if-match").iter().peekable();
    if values.peek().is_none() {
        return Ok(None);
    }
    let current = RowVersion::of(row);
    for value in values {
        let text = value.to_str().unwrap_or_default();
        for tag in text.split(',').map(str::trim) {
            if tag == "*" {
                return Ok(None);
            }
            let version = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
            let version = version.and_then(|version| version.parse::<RowVersion>().ok());
            // Of several, the one that the row has now; the change verifies it again.
            if version == Some(current) {
                return Ok(version);
            }
        }
    }
    let detail = format!("If-Match: the version is {current} now; read it again");
    Err(Problem::new(StatusCode::PRECONDITION_FAILED, "version_mismatch", detail).of_field("If-Match"))
}

impl ChangeRequest {
    pub(super) fn new(
        operation: Operation,
        method: Method,
        uri: &Uri,
        headers: &HeaderMap,
        parameters: &mut Parameters,
        body: &Bytes,
    ) -> Answer<Self> {
        Ok(Self {
            operation,
            method,
            path: uri.path().to_owned(),
            body: body.clone(),
            key: IdempotencyKey::of(headers)?,
            wait: parameters.take_wait()?,
            waits_for: (Changed::Key, &[]),
        })
    }
}
