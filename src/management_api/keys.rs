//! Keys: list, get, create, update, rotate, revoke, explain, identify.

use axum::{
    Json,
    body::Bytes,
    extract::Path,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    access::Operation,
    authentication::Session,
    body::{JsonBody, PatchBody, nothing_else},
    changes::{ChangeRequest, Made, to_json},
    problem::{Answer, Problem},
    query::Parameters,
    resource::{
        CredentialBody, ExplainBody, ExplanationBody, Key, KeyList, KeyPatch, NewKeyBody, RotatedKeyBody,
        RotationBody,
    },
    versions::{if_match, with_etag},
    wait::Changed,
};
use crate::{
    credential::Credential,
    record::UserId,
    store::{Database, DisplayRow, Patch, Resource, RevokedKeys, RotatedKey},
};

mod bodies;

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
    Ok(with_etag(StatusCode::OK, to_json(&session.database().with_chain(key).await?)?))
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
    Ok(with_etag(StatusCode::OK, to_json(&key)?))
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
}

async fn has_user(database: &Database, user: &str) -> Answer<bool> {
    Ok(!database.find_users(user).await?.is_empty())
}
