//! Knows the caller of a request: by a token, or by the certificate of its connection.

use std::net::IpAddr;

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, header::AUTHORIZATION, request::Parts},
};
use serde_json::Value;
use tracing::{debug, info};

use super::{
    access::{Caller, CallerId, Operation, Scope},
    api::Api,
    attempts::network,
    problem::{Answer, Problem},
    request_id::RequestId,
};
use crate::{
    clock,
    http_server::Client,
    record::UserId,
    store::{Actor, Database, ManagementToken, TokenSecret},
};

/// A request whose caller is known.
pub(super) struct Session {
    pub(super) api: Api,
    pub(super) caller: Caller,
    pub(super) address: IpAddr,
    pub(super) request_id: RequestId,
}

impl Session {
    /// Refuses an operation that the caller's scope does not have. Each handler calls this first.
    pub(super) fn may(&self, operation: Operation) -> Answer<()> {
        self.request_id.set_operation(operation);
        if self.caller.scope.allows(operation) {
            return Ok(());
        }
        Err(Problem::forbidden(self.caller.scope.name(), operation))
    }

    /// Whether keys of this user exist for the caller.
    pub(super) fn reaches(&self, user_id: &Value) -> bool {
        self.caller.scope.owner().is_none_or(|UserId(owner)| user_id.as_i64() == Some(owner))
    }

    /// The database, which the caller changes. This is the one place where a caller becomes an actor.
    pub(super) fn database(&self) -> Database {
        let address = self.address.to_string();
        let actor = match self.caller.id {
            CallerId::Token(_) => Actor::token(&self.caller.name, &address),
            CallerId::Client(_) => Actor::client(&self.caller.name, &address),
        };
        self.api.0.database.acting_as(actor)
    }

    /// Logs a change, on one line and without secrets.
    pub(super) fn log_change(&self, operation: Operation, subject: &Value) {
        info!(
            operation = operation.name(),
            subject = %subject,
            caller = self.caller.name,
            caller_kind = match self.caller.id {
                CallerId::Token(_) => "token",
                CallerId::Client(_) => "client",
            },
            address = %self.address,
            "changed"
        );
    }
}

impl FromRequestParts<Api> for Session {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let unknown = || Problem::unauthenticated("the connection has no address");
        let client = parts.extensions.get::<Client>().ok_or_else(unknown)?.clone();
        let request_id = parts.extensions.get::<RequestId>().cloned().unwrap_or_default();
        let now = clock::monotonic();
        let from = network(client.address);
        if let Some(seconds) = api.0.failures.refusal(&from, now) {
            return Err(Problem::too_many("too many failed authentications from this network", seconds));
        }
        let known = match authenticate(api, &parts.headers, &client).await {
            Ok(known) => known,
            Err(problem) => {
                if problem.code() == "unauthenticated" {
                    let _ = api.0.failures.count(from, now);
                    debug!(address = %client.address, "a caller is not known");
                }
                return Err(problem);
            }
        };
        if let Err(seconds) = api.0.requests.count(known.id.clone(), now) {
            return Err(Problem::too_many("too many requests", seconds));
        }
        Ok(Self { api: api.clone(), caller: known, address: client.address, request_id })
    }
}

/// A token decides if there is one, so that a portal can pass on less than its certificate allows.
async fn authenticate(api: &Api, headers: &HeaderMap, client: &Client) -> Answer<Caller> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => {
            let text = value.to_str().unwrap_or_default();
            let secret = text.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
            let secret = secret.and_then(|(_, token)| TokenSecret::parse(token.trim()));
            let secret = secret
                .ok_or_else(|| Problem::unauthenticated("Authorization is not `Bearer` with a token"))?;
            by_token(api, &secret).await
        }
        (Some(_), Some(_)) => Err(Problem::unauthenticated("there is more than one Authorization header")),
        (None, _) => by_certificate(api, client),
    }
}

/// The token is read for each request, so that a revoked one ends at once.
async fn by_token(api: &Api, secret: &TokenSecret) -> Answer<Caller> {
    let database = &api.0.database;
    let Some(token) = database.authenticate_token(secret).await? else {
        return Err(Problem::unauthenticated("the token is unknown, revoked or expired"));
    };
    let ManagementToken { id, name, scope, .. } = token;
    let scope = Scope::from(scope);
    if let Some(user) = scope.owner() {
        let user = database.find_user(&user.0.to_string()).await;
        if !user.is_ok_and(|user| *user.get("is_active") == true) {
            return Err(Problem::unauthenticated("the user of the token is disabled"));
        }
    }
    if api.0.uses.is_due(id, clock::monotonic()) {
        let database = database.clone();
        tokio::spawn(async move {
            if let Err(error) = database.touch_token(id).await {
                debug!(%error, "the use of a token could not be recorded");
            }
        });
    }
    Ok(Caller { id: CallerId::Token(id), name, scope })
}

fn by_certificate(api: &Api, client: &Client) -> Answer<Caller> {
    let allowed = api.0.clients.iter().filter(|known| client.names.contains(&known.name));
    let scoped = allowed.filter_map(|known| Some((known.name.to_string(), Scope::from(known.scope?))));
    // Of several names, the one that allows most.
    let best = scoped.max_by_key(|(_, scope)| *scope == Scope::Write);
    let Some((name, scope)) = best else {
        return Err(Problem::unauthenticated("send a token as `Authorization: Bearer`"));
    };
    Ok(Caller { id: CallerId::Client(name.clone()), name, scope })
}
