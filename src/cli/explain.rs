//! `keystile explain`: why a key would be allowed or denied, check by check, without side effects.

use std::{net::IpAddr, sync::Arc};

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    argument::refuse_whole_key,
    database::{open_read_only, with_database_name},
    output::Output,
};
use crate::{
    attributes::{Attributes, body::Body, route::RouteSettings},
    clock::{self, Timestamps},
    config::{AccountLock, DatabaseOptions, Mode, RateLimit},
    credential::Prefix,
    decision::{Proven, Reason, Tier},
    limits::{Charge, Span},
    policy::{self, BudgetBinding, CHECKS, Check, Facts},
    store::{Database, KeyStore, MAX_RECORDS, UnreadBudget},
};

/// A key, and a request that is imagined.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// Id of the key, or its prefix where no other key has it; never the key itself.
    key: String,
    /// Method of the request. Default: POST with a body, otherwise GET.
    #[arg(long)]
    method: Option<String>,
    /// Path of the request.
    #[arg(long, default_value = "/")]
    path: String,
    /// Address of the client. Default: unknown.
    #[arg(long, value_name = "ADDRESS")]
    client: Option<IpAddr>,
    /// Model that the body names, if Envoy sends the body with the check. Without it and without --body, the request has no body.
    #[arg(long)]
    model: Option<String>,
    /// Body of the request, such as '{"model": "gpt-4o", "agent_config_id": 7}'.
    #[arg(long, value_name = "JSON", conflicts_with = "model")]
    body: Option<String>,
    /// Whether Envoy sends bodies with the checks of this route (`with_request_body`). With `false`, no check sees the model.
    #[arg(long, value_name = "BOOL", default_value = "true", action = clap::ArgAction::Set)]
    envoy_sends_body: bool,
    /// A setting of the route, such as keystile.scopes='chat embed'; repeatable.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    route: Vec<(String, String)>,
    /// Time of the request, such as 2026-12-31T23:59:59Z. Default: now.
    #[arg(long, value_name = "TIME", value_parser = instant)]
    at: Option<OffsetDateTime>,
    /// Mode of the service.
    #[arg(long, env = "KEYSTILE_MODE", default_value = "enforce")]
    mode: Mode,
    /// Whether a locked account stops its API keys: `deny` or `ignore`.
    #[arg(long, env = "KEYSTILE_ACCOUNT_LOCK", default_value = "deny")]
    account_lock: AccountLock,
    /// Where requests are counted.
    #[arg(long, env = "KEYSTILE_RATE_LIMIT", default_value = "off")]
    rate_limit: RateLimit,
    /// Exit with status 1 if the request would be denied.
    #[arg(long)]
    exit_status: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    database: DatabaseOptions,
}

/// The explanation, as programs read it.
#[derive(Debug, Serialize)]
struct Explanation {
    key_id: i64,
    /// `allow` or `deny`.
    decision: &'static str,
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
    /// Keystile does not check this: the upstream does, or nobody counts.
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

pub(super) async fn run(explain: Explain) -> anyhow::Result<()> {
    refuse_whole_key(&explain.key)?;
    let database = open_read_only(&explain.database)?.with_account_lock(explain.account_lock);
    let proven = explain.key(&database).await?;
    let unread = database.unread_budgets(&proven.record).await;
    let unread = unread.map_err(|error| with_database_name(&explain.database, error))?;
    let is_restricted = proven.record.allowed.models.restricts();
    let explanation = explain.explain(proven, unread);
    explain.output.explanation(&explanation, &explanation.checks())?;
    if explain.assumes_body() && is_restricted && explanation.passes("model") {
        eprintln!(
            "note: this assumes that Envoy sends the body with the check (`with_request_body`); if it does not, the \
             request is denied as model_not_allowed: see --envoy-sends-body false"
        );
    }
    if explain.exit_status && explanation.decision == "deny" {
        bail!("the request would be denied");
    }
    Ok(())
}

impl Explain {
    /// The key's record, read as `serve` reads it. Nothing is proven here: the caller is taken to
    /// hold the whole credential.
    async fn key(&self, database: &Database) -> anyhow::Result<Proven> {
        let listed =
            database.find_key(&self.key).await.map_err(|error| with_database_name(&self.database, error))?;
        let id = listed.text("id");
        let prefix = Prefix::parse(&listed.text("key_prefix"))
            .with_context(|| format!("key {id} has no prefix that a credential could begin with"))?;
        let found = database.records(prefix, Timestamps::now()).await?;
        let record = found.records.iter().find(|record| record.id.0.to_string() == id);
        let record = record.with_context(|| {
            format!(
                "key {id} is denied as invalid_credential: its row cannot be decoded, or is not among the newest \
                 {MAX_RECORDS} with its prefix, which are all that are tried"
            )
        })?;
        Ok(Proven { record: Arc::clone(record), tier: Tier::Database, stale: false, limit_status: None })
    }

    /// Whether the request has a body that Envoy may or may not send.
    fn assumes_body(&self) -> bool {
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

    fn explain(&self, proven: Proven, unread: Vec<UnreadBudget>) -> Explanation {
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
                let charge = Charge { key: record.id, limits: record.limits, cost: route.cost };
                let limits = checked_limits(&charge, self.rate_limit);
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

impl Explanation {
    fn passes(&self, step: &str) -> bool {
        self.checks.iter().any(|check| check.step == step && check.result == CheckResult::Pass)
    }

    /// What a table shows: one row for each check and budget, and the answer.
    fn checks(&self) -> Vec<[String; 3]> {
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
fn checked_limits(charge: &Charge, counted: RateLimit) -> CheckOutcome {
    let limits = Span::ALL.into_iter().zip(charge.limits.per_span());
    let limit = |(span, limit): (Span, Option<u64>)| {
        let limit = limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
        format!("{limit} per {}", span.name())
    };
    let limits: Vec<_> = limits.map(limit).collect();
    let is_off = counted == RateLimit::Off;
    let told = if is_off { "; sent to the upstream, not counted" } else { "" };
    let detail = format!("{}; cost: {}{told}", limits.join(", "), charge.cost);
    CheckOutcome::new("limits", is_off || !charge.exceeds_a_limit(), is_off, Reason::RateLimited, detail)
}

fn pair(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("is not NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn instant(text: &str) -> Result<OffsetDateTime, &'static str> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "is not a time such as 2026-12-31T23:59:59Z")
}
