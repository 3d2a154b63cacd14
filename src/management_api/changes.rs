//! How a change is carried out once, and answered.

use std::time::Duration;

use axum::{
    body::Bytes,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri},
    response::Response,
};
use serde_json::Value;
use tracing::warn;
use zeroize::Zeroizing;

use super::{
    access::Operation,
    api::Api,
    authentication::Session,
    problem::{Answer, Problem},
    query::Parameters,
    versions::with_etag,
    wait::Changed,
};
use crate::store::{Database, DisplayRow, IdempotencyClaim, IdempotencyRecord, ManagementError};

/// What a change made.
pub(super) struct Made {
    pub(super) status: StatusCode,
    /// The body of the answer, without the secret.
    pub(super) body: Value,
    /// The credential of a new key, and the member of the body that gets it.
    pub(super) secret: Option<(&'static [&'static str], Zeroizing<String>)>,
}

/// A request that changes something.
pub(super) struct ChangeRequest {
    pub(super) operation: Operation,
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Bytes,
    pub(super) key: Option<IdempotencyKey>,
    pub(super) wait: Option<Duration>,
    /// The member of the body whose row instances must have read.
    pub(super) waits_for: (Changed, &'static [&'static str]),
}

/// The value of the header `Idempotency-Key`.
pub(super) struct IdempotencyKey(String);

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const MAX_KEY: usize = 255;

/// The place of a request among those in progress.
struct InProgress(Api, String);

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

impl IdempotencyKey {
    pub(super) fn of(headers: &HeaderMap) -> Answer<Option<Self>> {
        let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
        let wrong = || {
            let detail =
                format!("Idempotency-Key: is not one value of 1 to {MAX_KEY} visible ASCII characters");
            Problem::malformed(detail).of_field("Idempotency-Key")
        };
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(_), Some(_)) => Err(wrong()),
            (Some(value), None) => {
                let text = value.to_str().map_err(|_| wrong())?;
                let is_plain = !text.is_empty()
                    && text.len() <= MAX_KEY
                    && text.bytes().all(|byte| byte.is_ascii_graphic());
                if is_plain { Ok(Some(Self(text.to_owned()))) } else { Err(wrong()) }
            }
        }
    }
}

impl Session {
    /// Carries out a change, once for each idempotency key, and answers. `again` is the body of a change that an earlier
    /// request made and did not live to answer; it gets the id of the row that was created.
    pub(super) async fn change(
        &self,
        request: ChangeRequest,
        change: impl AsyncFnOnce(Database) -> Answer<Made>,
        again: impl AsyncFnOnce(Database, Option<i64>) -> Answer<Made>,
    ) -> Answer<Response> {
        let database = self.database();
        let change = async |database: Database| {
            change(database).await.map_err(|problem| match problem.code() {
                "internal" => Problem::refused_by_database(),
                _ => problem,
            })
        };
        let Some(key) = &request.key else {
            let made = change(database).await?;
            self.log_change(request.operation, subject(&made.body));
            return self.answer(&request, made, false).await;
        };
        let parts = [request.method.as_str().as_bytes(), request.path.as_bytes(), &request.body];
        let claim = IdempotencyClaim::new(&self.caller.id.to_text(), &key.0, parts);
        let _in_progress = self.begin(&claim)?;
        let earlier = match database.earlier_request(&claim).await? {
            Some(earlier) => earlier,
            None => match change(database.for_request(claim.clone())).await {
                Ok(made) => {
                    self.log_change(request.operation, subject(&made.body));
                    record(&database, &claim, &made).await;
                    return self.answer(&request, made, false).await;
                }
                // Another process has carried it out since.
                Err(problem) if problem.code() == Problem::in_progress().code() => {
                    database.earlier_request(&claim).await?.ok_or(problem)?
                }
                Err(problem) => return Err(problem),
            },
        };
        let made = replay(&database, &claim, earlier, again).await?;
        self.answer(&request, made, true).await
    }

    fn begin(&self, claim: &IdempotencyClaim) -> Answer<InProgress> {
        if !self.api.0.in_progress.lock().insert(claim.id().to_owned()) {
            return Err(Problem::in_progress());
        }
        Ok(InProgress(self.api.clone(), claim.id().to_owned()))
    }

    async fn answer(&self, request: &ChangeRequest, made: Made, is_replayed: bool) -> Answer<Response> {
        let Made { mut status, mut body, secret } = made;
        if let Some(timeout) = request.wait {
            let (changed, member) = request.waits_for;
            let row = member.iter().fold(&body, |row, member| &row[*member]).clone();
            // The change is committed: a failure to wait is no failure of the change.
            match self.wait(changed, &row, timeout).await {
                Ok(applied) => {
                    body["instances"] = applied.instances;
                    if !applied.is_complete {
                        status = StatusCode::ACCEPTED;
                    }
                }
                Err(_) => {
                    body["instances"] = Value::Null;
                    status = StatusCode::ACCEPTED;
                }
            }
        }
        if let Some((path, secret)) = secret {
            let place = path.iter().fold(&mut body, |place, member| &mut place[*member]);
            *place = Value::String(secret.to_string());
        }
        let mut answer = with_etag(status, body);
        if is_replayed {
            answer.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        }
        Ok(answer)
    }
}

/// The body of what an earlier request made.
async fn replay(
    database: &Database,
    claim: &IdempotencyClaim,
    earlier: IdempotencyRecord,
    again: impl AsyncFnOnce(Database, Option<i64>) -> Answer<Made>,
) -> Answer<Made> {
    let IdempotencyRecord { is_same, subject, answer } = earlier;
    if !is_same {
        let detail = "this Idempotency-Key was used for another request; use a new one";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", detail));
    }
    if let Some((status, body)) = answer
        && let (Ok(status), Ok(body)) = (StatusCode::from_u16(status), serde_json::from_str(&body))
    {
        return Ok(Made { status, body, secret: None });
    }
    let made = again(database.clone(), subject).await?;
    record(database, claim, &made).await;
    Ok(Made { secret: None, ..made })
}

async fn record(database: &Database, claim: &IdempotencyClaim, made: &Made) {
    let recorded = database.record_answer(claim, made.status.as_u16(), &made.body.to_string()).await;
    if let Err(error) = recorded {
        warn!(%error, "an answer could not be recorded; a replay reads the row again");
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.0.in_progress.lock().remove(&self.1);
    }
}

impl Made {
    pub(super) fn row(status: StatusCode, row: &DisplayRow) -> Answer<Self> {
        Ok(Self { status, body: to_json(row)?, secret: None })
    }
}

pub(super) fn to_json(row: &DisplayRow) -> Answer<Value> {
    serde_json::to_value(row)
        .map_err(|_| ManagementError::Refused("the row cannot be written as JSON".into()).into())
}

fn subject(body: &Value) -> &Value {
    if body["id"].is_null() { &body["successor"]["id"] } else { &body["id"] }
}
