//! Users: list, get, create, update.

use axum::{
    Json,
    extract::Path,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{
    access::Operation,
    authentication::Session,
    body::{JsonBody, PatchBody, nothing_else},
    changes::{ChangeRequest, Made, to_json},
    problem::{Answer, Problem},
    query::Parameters,
    resource::{NewUserBody, User, UserList, UserPatch},
    versions::{if_match, with_etag},
    wait::Changed,
};
use crate::store::{Database, DisplayRow, NewUser, Patch, Resource};

/// Lists users by id, a page at a time.
#[utoipa::path(
    get, path = "/v1/users", tag = "users", operation_id = "list_users",
    params(
        ("email" = Option<String>, Query, description = "The user's email address"),
        ("limit" = Option<u32>, Query, description = "Users in a page: 1 to 200, 50 by default"),
        ("after" = Option<i64>, Query, description = "Where the page before ended: its `next`"),
    ),
    responses((status = 200, description = "A page", body = UserList)),
    security(("token" = []), ("certificate" = []))
)]
pub(super) async fn list(session: Session, mut parameters: Parameters) -> Answer<Response> {
    session.may(Operation::ListUsers)?;
    let (email, limit) = (parameters.take("email")?, parameters.take_limit()?.get());
    let after: Option<i64> = parameters.take_parsed("after")?;
    parameters.finish()?;
    let database = session.database();
    let mut users = match email {
        Some(email) if email.parse::<i64>().is_err() => {
            let mut users = database.find_users(&email).await?;
            users.retain(|user| after.is_none_or(|after| user.get("id").as_i64() > Some(after)));
            users
        }
        Some(_) => Vec::new(),
        None => database.users_after(after, limit.saturating_add(1)).await?,
    };
    let is_cut = users.len() > limit;
    users.truncate(limit);
    let next = users.last().filter(|_| is_cut).map(|user| user.text("id"));
    Ok(Json(json!({ "users": users, "next": next })).into_response())
}

/// Reads a user.
#[utoipa::path(
    get, path = "/v1/users/{id}", tag = "users", operation_id = "get_user",
    params(("id" = i64, Path, description = "Number of the user")),
    responses((status = 200, description = "The user", body = User)),
    security(("token" = []), ("certificate" = []))
)]
pub(super) async fn get(
    session: Session,
    Path(id): Path<String>,
    parameters: Parameters,
) -> Answer<Response> {
    session.may(Operation::GetUser)?;
    parameters.finish()?;
    Ok(with_etag(StatusCode::OK, to_json(&session.user(&id).await?)?))
}

/// Creates a user, who can have keys and cannot log in.
#[utoipa::path(
    post, path = "/v1/users", tag = "users", operation_id = "create_user",
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "A text of the caller's choice: a second request with it creates no second user"),
    ),
    request_body = NewUserBody,
    responses((status = 201, description = "The user", body = User)),
    security(("token" = []), ("certificate" = []))
)]
pub(super) async fn create(
    session: Session,
    uri: Uri,
    headers: HeaderMap,
    mut parameters: Parameters,
    body: JsonBody,
) -> Answer<Response> {
    session.may(Operation::CreateUser)?;
    let request =
        ChangeRequest::new(Operation::CreateUser, Method::POST, &uri, &headers, &mut parameters, &body.0)?;
    parameters.finish()?;
    let mut members = body.object()?;
    let mut text = |name: &str, is_needed: bool| match members.remove(name) {
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
        Some(Value::Null) | None if !is_needed => Ok(None),
        _ => Err(Problem::invalid(name, format!("{name}: is not a text, or empty"))),
    };
    let (email, username) = (text("email", true)?, text("username", true)?);
    let role = text("role", false)?;
    let superuser = match members.remove("is_superuser") {
        Some(Value::Bool(flag)) => flag,
        Some(Value::Null) | None => false,
        Some(_) => return Err(Problem::invalid("is_superuser", "is_superuser: is neither true nor false")),
    };
    nothing_else(&members)?;
    let (email, username) = (email.unwrap_or_default(), username.unwrap_or_default());
    let new = NewUser { email, username, role, superuser };
    let again = async |database: Database, created: Option<i64>| {
        let id = created.ok_or_else(|| Problem::not_found("user"))?;
        Made::row(StatusCode::CREATED, &database.find_user(&id.to_string()).await?)
    };
    let create =
        async |database: Database| Made::row(StatusCode::CREATED, &database.create_user(&new).await?);
    session.change(request, create, again).await
}

/// Changes a user. With `If-Match`, only if its version is still that one.
#[utoipa::path(
    patch, path = "/v1/users/{id}", tag = "users", operation_id = "update_user",
    params(
        ("id" = i64, Path, description = "Number of the user"),
        ("If-Match" = Option<String>, Header, description = "The `ETag` of the user as the caller has read it"),
        ("Idempotency-Key" = Option<String>, Header, description = "A text of the caller's choice: a second request with it changes nothing"),
        ("wait" = Option<String>, Query, description = "How long to wait for the instances, such as 5s"),
    ),
    request_body(content = UserPatch, content_type = "application/merge-patch+json"),
    responses(
        (status = 200, description = "The user", body = User),
        (status = 202, description = "Changed, but not confirmed by each instance in time", body = User),
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
    session.may(Operation::UpdateUser)?;
    let request =
        ChangeRequest::new(Operation::UpdateUser, Method::PATCH, &uri, &headers, &mut parameters, &body.0)?;
    let request = ChangeRequest { waits_for: (Changed::User, &[]), ..request };
    parameters.finish()?;
    let patch = Patch::new(Resource::User, body.object()?)?;
    let user = session.user(&id).await?;
    let version = if_match(&headers, &user)?;
    let again = async |database: Database, _| Made::row(StatusCode::OK, &database.find_user(&id).await?);
    let update = async |database: Database| {
        Made::row(StatusCode::OK, &database.update_user(&id, &patch, version).await?.after)
    };
    session.change(request, update, again).await
}

impl Session {
    async fn user(&self, id: &str) -> Answer<DisplayRow> {
        let not_found = || Problem::not_found("user");
        id.parse::<i64>().ok().filter(|number| number.to_string() == id).ok_or_else(not_found)?;
        self.database().find_users(id).await?.pop().ok_or_else(not_found)
    }
}
