//! `keystile keys update`

use anyhow::Context;
use clap::{Args, builder::NonEmptyStringValueParser};
use serde_json::{Map, Value};
use time::format_description::well_known::Rfc3339;

use super::{
    create::{cents, count, expiry},
    list_flags::ListFlags,
};
use crate::{
    cli::{
        argument::refuse_whole_key,
        database::{open, open_read_only, with_database_name},
        output::Output,
        patch_args::{Fields, PatchArgs, field},
        wait::wait_for_instances_with_key,
    },
    config::DatabaseOptions,
    credential::Prefix,
    store::{Patch, Resource},
};

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Id or prefix of the key.
    #[arg(value_name = "ID|PREFIX")]
    key: String,
    /// Name of the key.
    #[arg(long, value_parser = NonEmptyStringValueParser::new(), help_heading = "Fields")]
    name: Option<String>,
    /// Purpose of the key.
    #[arg(long, value_parser = NonEmptyStringValueParser::new(), help_heading = "Fields")]
    description: Option<String>,
    /// Expiry time, such as 2026-12-31T23:59:59Z, a duration from now, such as 90d, or `never`.
    #[arg(long, value_name = "TIME", value_parser = expiry_or_never, help_heading = "Fields")]
    expires_at: Option<Value>,
    /// Let a disabled key work again. A revoked key stays revoked where the database has the column deleted_at.
    #[arg(long, conflicts_with = "disable", help_heading = "Fields")]
    enable: bool,
    /// Stop the key, for as long as it is not enabled.
    #[arg(long, help_heading = "Fields")]
    disable: bool,
    /// Maximum number of requests in a minute; 0 denies every request.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true, value_parser = count, help_heading = "Fields")]
    rate_limit_per_minute: Option<u64>,
    /// Maximum number of requests in an hour.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true, value_parser = count, help_heading = "Fields")]
    rate_limit_per_hour: Option<u64>,
    /// Maximum number of requests in a day.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true, value_parser = count, help_heading = "Fields")]
    rate_limit_per_day: Option<u64>,
    /// Budget in cents; 0 denies every request. The budget is then no longer unlimited.
    #[arg(long, value_name = "CENTS", allow_negative_numbers = true, value_parser = cents, help_heading = "Fields")]
    budget_limit_cents: Option<i64>,
    /// Period of the budget, such as total or monthly.
    #[arg(long, value_name = "TYPE", value_parser = NonEmptyStringValueParser::new(), help_heading = "Fields")]
    budget_type: Option<String>,
    /// Enforce no budget, whatever its limit is.
    #[arg(long, conflicts_with = "budget_limit_cents", help_heading = "Fields")]
    unlimited_budget: bool,
    /// JSON object that is merged into the key's permissions (RFC 7386): null removes a member.
    #[arg(long, value_name = "JSON", value_parser = json_object, help_heading = "Fields")]
    permissions: Option<Value>,
    /// Field to remove the value of, such as tags or allowed-models; repeatable, or separated by commas. A cleared list
    /// restricts nothing.
    #[arg(long, value_name = "FIELD", value_delimiter = ',', value_parser = |text: &str| field(Resource::Key, text), help_heading = "Fields")]
    clear: Vec<String>,
    #[command(flatten)]
    lists: ListFlags,
    #[command(flatten)]
    patch: PatchArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    database: DatabaseOptions,
}

impl Update {
    fn patch(&self) -> anyhow::Result<Patch> {
        let mut fields = Fields::default();
        fields.set("name", self.name.clone())?;
        fields.set("description", self.description.clone())?;
        fields.set("expires_at", self.expires_at.clone())?;
        fields.set("is_active", (self.enable || self.disable).then_some(self.enable))?;
        fields.set("rate_limit_per_minute", self.rate_limit_per_minute)?;
        fields.set("rate_limit_per_hour", self.rate_limit_per_hour)?;
        fields.set("rate_limit_per_day", self.rate_limit_per_day)?;
        fields.set("budget_limit_cents", self.budget_limit_cents)?;
        fields.set("budget_type", self.budget_type.clone())?;
        fields.set("is_unlimited", self.unlimited_budget.then_some(true))?;
        fields.set("permissions", self.permissions.clone())?;
        for (column, entries) in self.lists.set() {
            fields.set(column, Some(entries.to_vec()))?;
        }
        fields.clear(&self.clear)?;
        let patch = self.patch.patch(Resource::Key, fields)?;
        if let Some(list) = self.lists.edited().find(|list| patch.get(list).is_some()) {
            anyhow::bail!("{list}: is both set and edited; use one of the two");
        }
        Ok(self.lists.edit(patch)?)
    }
}

pub(super) async fn run(args: Update) -> anyhow::Result<()> {
    refuse_whole_key(&args.key)?;
    let patch = args.patch()?;
    args.patch.require_change(&patch);
    let Update { key, patch: flags, output, database, .. } = args;
    let named = |error| with_database_name(&database, error);
    let change = if flags.dry_run {
        open_read_only(&database)?.preview_update(Resource::Key, &key, &patch, flags.if_version).await
    } else {
        open(&database)?.update_key(&key, &patch, flags.if_version).await
    };
    let change = change.map_err(named)?;
    let row = format!(
        "key {} ({}) of {}",
        change.after.text("id"),
        change.after.text("key_prefix"),
        change.after.text("user_email")
    );
    flags.print(&change, &row, output)?;
    if !flags.wait {
        return Ok(());
    }
    let prefix = Prefix::parse(&change.after.text("key_prefix"))
        .context("the key is updated; no credential can have its prefix, so no instance has it in memory")?;
    let (opened, wait) = (open(&database)?, flags.wait_args);
    let waited = wait_for_instances_with_key(&opened, change.after, prefix, wait, output).await;
    waited.with_context(|| format!("{row} is updated, but not confirmed everywhere"))
}

fn expiry_or_never(text: &str) -> Result<Value, String> {
    if text.eq_ignore_ascii_case("never") {
        return Ok(Value::Null);
    }
    let end = expiry(text)?;
    end.format(&Rfc3339).map(Value::from).map_err(|error| error.to_string())
}

fn json_object(text: &str) -> Result<Value, String> {
    let object = serde_json::from_str::<Map<String, Value>>(text);
    object.map(Value::Object).map_err(|_| "is not a JSON object, such as '{\"files\": \"read\"}'".into())
}
