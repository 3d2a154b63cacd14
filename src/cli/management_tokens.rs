//! `keystile management-tokens`

use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};
use time::OffsetDateTime;

use super::{
    argument::future,
    database::{open, open_read_only, with_database_name},
    output::{Output, OutputFormat, json, print},
};
use crate::{
    clock,
    config::{DatabaseOptions, TokenKind, duration_or_none},
    record::UserId,
    store::{KeyTemplate, TokenScope, json_object},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a token of the management API, and print it, this once.
    Create(Create),
    /// List tokens, newest first.
    List(List),
    /// Revoke a token. It ends at once.
    Revoke(Revoke),
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Name of the token, which the audit log shows. It must be unique.
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    name: String,
    /// What the token allows: `read` to read users and keys; `write` everything; `own` to list, read, rotate and revoke
    /// the keys of one user, and to create keys by a template.
    #[arg(long, value_enum)]
    scope: TokenKind,
    /// Id or email of the user, for `own`.
    #[arg(long, required_if_eq("scope", "own"))]
    user: Option<String>,
    /// Columns of each key that the user creates, as JSON, such as '{"scopes": ["chat"], "rate_limit_per_minute": 60}'.
    /// Without it, the token cannot create keys.
    #[arg(long, value_name = "JSON", requires = "user")]
    template: Option<String>,
    /// Maximum number of the user's keys that are not revoked, for the user's own creations.
    #[arg(long, value_name = "COUNT", default_value = "10", requires = "template")]
    max_keys: u32,
    /// Maximum lifetime of a key that the user creates, such as 90d.
    #[arg(long, value_name = "TIME", value_parser = duration_or_none, requires = "template")]
    max_lifetime: Option<Duration>,
    /// Expiry time of the token, such as 2030-12-31T23:59:59Z, or a duration from now, such as 90d. Without it, the token
    /// does not expire.
    #[arg(long, value_name = "TIME", value_parser = future)]
    expires_at: Option<OffsetDateTime>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    database: DatabaseOptions,
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    database: DatabaseOptions,
}

#[derive(Debug, Args)]
pub(super) struct Revoke {
    /// Id or name.
    #[arg(value_name = "ID|NAME")]
    token: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    database: DatabaseOptions,
}

const COLUMNS: &[(&str, &str)] = &[
    ("ID", "id"),
    ("Name", "name"),
    ("Scope", "scope"),
    ("User", "user_id"),
    ("State", "state"),
    ("Created", "created_at"),
    ("Expires", "expires_at"),
    ("Last used", "last_used_at"),
];

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create(args) => create(args).await,
        Command::List(List { output, database }) => {
            let tokens = open_read_only(&database)?.list_tokens().await;
            let tokens = tokens.map_err(|error| with_database_name(&database, error))?;
            let rows: Vec<_> = tokens.iter().map(|token| token.to_row(clock::wall())).collect();
            output.rows(&rows, COLUMNS, "no tokens yet; create one with `keystile management-tokens create`")
        }
        Command::Revoke(Revoke { token, output, database }) => {
            let token = open(&database)?.revoke_token(&token).await;
            output.row(&token.map_err(|error| with_database_name(&database, error))?.to_row(clock::wall()))
        }
    }
}

async fn create(args: Create) -> anyhow::Result<()> {
    let Create { name, scope, user, template, max_keys, max_lifetime, expires_at, output, database } = args;
    let opened = open(&database)?;
    let scope = match (scope, user) {
        (TokenKind::Read, None) => TokenScope::Read,
        (TokenKind::Write, None) => TokenScope::Write,
        (TokenKind::Own, Some(user)) => {
            let user = opened.find_user(&user).await.map_err(|error| with_database_name(&database, error))?;
            let user = user.get("id").as_i64().map(UserId).context("the user's id is no whole number")?;
            let template = template.map(|text| {
                let fields = json_object(text.as_bytes()).context("--template")?;
                KeyTemplate::new(fields, max_keys, max_lifetime).context("--template")
            });
            TokenScope::Own { user, template: template.transpose()? }
        }
        (TokenKind::Read | TokenKind::Write, Some(_)) => {
            bail!("--user: only a token with --scope own has a user")
        }
        (TokenKind::Own, None) => bail!("--user: a token with --scope own needs a user"),
    };
    let created = opened.create_token(&name, &scope, expires_at).await;
    let (token, secret) = created.map_err(|error| with_database_name(&database, error))?;
    let row = token.to_row(clock::wall());
    if output.output == OutputFormat::Json {
        return json(&row.with("token", secret.expose()));
    }
    eprintln!("created token {} ({}); this is the only time that it is shown:", row.text("id"), scope.name());
    print(&format!("{}\n", secret.expose()))
}
