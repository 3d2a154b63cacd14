//! `keystile explain`: why a key would be allowed or denied, check by check, without side effects.

use std::net::IpAddr;

use anyhow::bail;
use clap::Args;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    argument::refuse_whole_key,
    database::{open_read_only, with_database_name},
    output::Output,
};
use crate::{
    config::{AccountLock, DatabaseOptions, Mode, RateLimit},
    explanation::ImaginedRequest,
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

pub(super) async fn run(explain: Explain) -> anyhow::Result<()> {
    refuse_whole_key(&explain.key)?;
    let named = |error| with_database_name(&explain.database, error);
    let database = open_read_only(&explain.database)?.with_account_lock(explain.account_lock);
    let listed = database.find_key(&explain.key).await.map_err(named)?;
    let request = explain.request();
    let explanation = request.explain(&database, &listed).await.map_err(named)?;
    explain.output.explanation(&explanation, &explanation.checks())?;
    if request.assumes_body() && explanation.restricts_models && explanation.passes("model") {
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
    fn request(&self) -> ImaginedRequest {
        ImaginedRequest {
            method: self.method.clone(),
            path: self.path.clone(),
            client: self.client,
            model: self.model.clone(),
            body: self.body.clone(),
            envoy_sends_body: self.envoy_sends_body,
            route: self.route.clone(),
            at: self.at,
            mode: self.mode,
            rate_limit: self.rate_limit,
        }
    }
}

fn pair(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("is not NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn instant(text: &str) -> Result<OffsetDateTime, &'static str> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "is not a time such as 2026-12-31T23:59:59Z")
}
