//! Why a key would be allowed or denied, check by check, without side effects.

use std::{net::IpAddr, sync::Arc};

use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;

use crate::{
    attributes::{Attributes, body::Body, route::RouteSettings},
    clock::{self, Timestamps},
    config::{Mode, RateLimit},
    credential::Prefix,
    decision::{Proven, Reason, Tier},
    limits::{Charge, Span},
    policy::{self, BudgetBinding, CHECKS, Check, Facts},
    record::KeyId,
    store::{Database, DisplayRow, KeyStore, MAX_RECORDS, ManagementError, UnreadBudget},
};

/// A request that is imagined.
#[derive(Debug, Clone)]
pub struct ImaginedRequest {
    /// Method. `None`: POST with a body, otherwise GET.
    pub method: Option<String>,
    /// Path.
    pub path: String,
    /// Address of the client.
    pub client: Option<IpAddr>,
    /// Model that the body names. Without it and without `body`, the request has no body.
    pub model: Option<String>,
    /// Body.
    pub body: Option<String>,
    /// Whether Envoy sends bodies with the checks of this route.
    pub envoy_sends_body: bool,
    /// Settings of the route.
    pub route: Vec<(String, String)>,
    /// Time. `None`: now.
    pub at: Option<OffsetDateTime>,
    /// Mode of the service.
    pub mode: Mode,
    /// Where requests are counted.
    pub rate_limit: RateLimit,
}

/// The explanation, as programs read it.
#[derive(Debug, Serialize)]
pub struct Explanation {
    key_id: i64,
    /// Whether the key is restricted to some models.
    #[serde(skip)]
    pub restricts_models: bool,
    /// `allow` or `deny`.
    pub decision: &'static str,
    /// Whether the denial is only reported.
    shadowed: bool,
    status: u16,
    /// The code of the first check that denies.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    detail: String,
    checks: Vec<CheckOutcome>,
    /// The rows of `budgets` of the key and of its user.
    budgets: Vec<BudgetOutcome>,
}

#[derive(Debug, Serialize)]
struct CheckOutcome {
    step: &'static str,
    result: CheckResult,
    /// The code of the denial.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    /// The values that were compared.
    detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum CheckResult {
    Pass,
    Deny,
    /// Keystile does not check this. The upstream does, or the limits of keys are not counted at all.
    Skip,
}

/// What a row of `budgets` means for the request.
#[derive(Debug, Serialize)]
struct BudgetOutcome {
    budget_id: Option<i64>,
    /// Whether the row denies the request once it is spent.
    binds: bool,
    /// Whether the row denies the request now.
    denies: bool,
    /// Why it binds the request or does not.
    detail: String,
    /// What is spent of it. Absent for a row that a check does not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
}

impl ImaginedRequest {
    /// Explains what the listed key would get. Nothing is proven: the caller is taken to hold the whole credential.
    ///
    /// # Errors
    /// [`ManagementError`] when the database fails, or no check finds the key.
    pub async fn explain(
        &self,
        database: &Database,
        listed: &DisplayRow,
    ) -> Result<Explanation, ManagementError> {
        let proven = key(database, listed).await?;
        let unread = database.unread_budgets(&proven.record).await?;
        Ok(self.explained(proven, unread))
    }

    /// Whether the request has a body that Envoy may or may not send.
    pub fn assumes_body(&self) -> bool {
        self.envoy_sends_body && (self.model.is_some() || self.body.is_some())
    }

    fn method(&self) -> &str {
        let has_body = self.model.is_some() || self.body.is_some();
        self.method.as_deref().unwrap_or(if has_body { "POST" } else { "GET" })
    }

    fn body(&self, route: Option<&RouteSettings>) -> Body<'_> {
        if !self.envoy_sends_body {
            return Body::Absent;
        }
        let model = self.model.as_ref().map(|model| {
            let field = route.map_or("model", |route| route.model_fields.first());
            json!({ field: model }).to_string()
        });
        let text = model.or_else(|| self.body.clone());
        text.map(|text| Body::Whole(text.into_bytes().into())).unwrap_or_default()
    }

    fn explained(&self, proven: Proven, unread: Vec<UnreadBudget>) -> Explanation {
        let route =
            RouteSettings::parse(self.route.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let attributes = Attributes {
            credential: Err(Reason::MissingCredential),
            request_id: "",
            stream_id: "",
            method: self.method(),
            path: &self.path,
            client: self.client,
            vouched_client: None,
            is_grpc: false,
            body: self.body(route.as_ref().ok()),
            route,
        };
        let record = Arc::clone(&proven.record);
        let now = self.at.unwrap_or_else(clock::wall);
        let (checks, budgets, reason, shadow) = match &attributes.route {
            Ok(route) => {
                let facts = Facts { record: &record, attributes: &attributes, route, now };
                let charge = Charge { key: record.limit_id, limits: record.limits, cost: route.cost };
                let limits = checked_limits(&charge, record.id, self.rate_limit);
                let limited = (limits.result == CheckResult::Deny).then_some(Reason::RateLimited);
                let checks = CHECKS.iter().map(|check| checked(check, &facts)).chain([limits]).collect();
                let budgets = policy::bindings(&facts).into_iter().map(BudgetOutcome::from);
                let budgets = budgets.chain(unread.into_iter().map(BudgetOutcome::from)).collect();
                (checks, budgets, policy::check(&facts).err().or(limited), route.shadow)
            }
            Err(error) => {
                let route =
                    CheckOutcome::new("route", false, false, Reason::RouteMisconfigured, error.to_string());
                (vec![route], Vec::new(), Some(Reason::RouteMisconfigured), None)
            }
        };
        let service = self.mode == Mode::Shadow;
        let shadowed = reason.is_some_and(|reason| proven.deny(reason).is_shadowed(shadow, service));
        let denied = reason.filter(|_| !shadowed);
        let problem = attributes.route.err().map(|error| error.to_string());
        let sentence = reason.map_or("Every check passes.", Reason::sentence);
        Explanation {
            key_id: record.id.0,
            restricts_models: record.allowed.models.restricts(),
            decision: if denied.is_some() { "deny" } else { "allow" },
            shadowed,
            status: denied.map_or(200, Reason::status),
            code: reason.map(Reason::code),
            detail: problem.unwrap_or_else(|| sentence.to_owned()),
            checks,
            budgets,
        }
    }
}

/// The key's record, read as `serve` reads it.
async fn key(database: &Database, listed: &DisplayRow) -> Result<Proven, ManagementError> {
    let id = listed.text("id");
    let prefix = Prefix::parse(&listed.text("key_prefix")).map_err(|_| {
        ManagementError::Refused(format!("key {id} has no prefix that a credential could begin with"))
    })?;
    let found = database.records(prefix, Timestamps::now()).await?;
    let record = found.records.iter().find(|record| record.id.0.to_string() == id);
    let record = record.ok_or_else(|| {
        ManagementError::Refused(format!(
            "key {id} is denied as invalid_credential: its row cannot be decoded, or is not among the newest \
             {MAX_RECORDS} with its prefix, which are all that are tried"
        ))
    })?;
    Ok(Proven { record: Arc::clone(record), tier: Tier::Database, stale: false, limit_status: None })
}

impl Explanation {
    /// Whether the check of this name passes.
    pub fn passes(&self, step: &str) -> bool {
        self.checks.iter().any(|check| check.step == step && check.result == CheckResult::Pass)
    }

    /// What a table shows: one row for each check and budget, and the answer.
    pub fn checks(&self) -> Vec<[String; 3]> {
        let row = |checked: &CheckOutcome| {
            let result = match (checked.result, checked.code) {
                (CheckResult::Pass, _) => "pass".to_owned(),
                (CheckResult::Skip, _) => "skip".to_owned(),
                (CheckResult::Deny, code) => format!("deny: {}", code.unwrap_or_default()),
            };
            [checked.step.to_owned(), result, checked.detail.clone()]
        };
        let budgets = self.budgets.iter().map(BudgetOutcome::row);
        let shadowed = if self.shadowed { ", shadowed" } else { "" };
        let code = self.code.map(|code| format!(" {code}")).unwrap_or_default();
        let answer = format!("{}{code}{shadowed}", self.decision);
        let answer = ["answer".to_owned(), answer, self.detail.clone()];
        self.checks.iter().map(row).chain(budgets).chain([answer]).collect()
    }
}

impl BudgetOutcome {
    fn row(&self) -> [String; 3] {
        let id = self.budget_id.map_or_else(|| "?".to_owned(), |id| id.to_string());
        let verdict = match (self.binds, self.denies) {
            (_, true) => "deny: budget_exhausted",
            (true, false) => "binds",
            (false, false) => "does not bind",
        };
        let status = self.status.iter().map(|status| format!("{status}; ")).collect::<String>();
        [format!("budget {id}"), verdict.to_owned(), format!("{status}{}", self.detail)]
    }
}

impl From<BudgetBinding> for BudgetOutcome {
    fn from(BudgetBinding { id, binds, denies, why, status }: BudgetBinding) -> Self {
        Self { budget_id: id.map(|id| id.0), binds, denies, detail: why, status: Some(status) }
    }
}

impl From<UnreadBudget> for BudgetOutcome {
    fn from(UnreadBudget { id, why }: UnreadBudget) -> Self {
        Self { budget_id: id.map(|id| id.0), binds: false, denies: false, detail: why, status: None }
    }
}

impl CheckOutcome {
    fn new(step: &'static str, passes: bool, is_skipped: bool, reason: Reason, detail: String) -> Self {
        let result = match (passes, is_skipped) {
            (false, _) => CheckResult::Deny,
            (true, true) => CheckResult::Skip,
            (true, false) => CheckResult::Pass,
        };
        Self { step, result, code: (!passes).then(|| reason.code()), detail }
    }
}

fn checked(check: &Check, facts: &Facts<'_>) -> CheckOutcome {
    let is_left = (check.is_left_to_upstream)(facts);
    CheckOutcome::new(check.name, (check.passes)(facts), is_left, check.reason, (check.looks_at)(facts))
}

/// What was used is not known here; a limit that lets nothing through is.
fn checked_limits(charge: &Charge, key: KeyId, counted: RateLimit) -> CheckOutcome {
    let limits = Span::ALL.into_iter().zip(charge.limits.per_span());
    let limit = |(span, limit): (Span, Option<u64>)| {
        let limit = limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
        format!("{limit} per {}", span.name())
    };
    let limits: Vec<_> = limits.map(limit).collect();
    let shared = if charge.key == key {
        String::new()
    } else {
        format!("; counted under key {}, the first of its chain", charge.key.0)
    };
    let is_off = counted == RateLimit::Off;
    let told = if is_off { "; sent to the upstream, not counted" } else { "" };
    let detail = format!("{}; cost: {}{shared}{told}", limits.join(", "), charge.cost);
    CheckOutcome::new("limits", is_off || !charge.exceeds_a_limit(), is_off, Reason::RateLimited, detail)
}
