//! `keystile users update`

use clap::{Args, builder::NonEmptyStringValueParser};
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::wait::wait_for_keys;
use crate::{
    cli::{
        argument::future,
        database::{open, open_read_only, with_database_name},
        output::Output,
        patch_args::{Fields, PatchArgs, field},
    },
    config::DatabaseOptions,
    store::{Patch, Resource},
};

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Id or email of the user.
    #[arg(value_name = "ID|EMAIL")]
    user: String,
    /// Email address. It must be unique.
    #[arg(long, value_parser = NonEmptyStringValueParser::new(), help_heading = "Fields")]
    email: Option<String>,
    /// Name. It must be unique.
    #[arg(long, value_parser = NonEmptyStringValueParser::new(), help_heading = "Fields")]
    username: Option<String>,
    /// Role, as upstreams receive it.
    #[arg(long, value_parser = NonEmptyStringValueParser::new(), help_heading = "Fields")]
    role: Option<String>,
    /// Whether upstreams are told that the user is a superuser. It allows nothing in Keystile.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Fields")]
    superuser: Option<bool>,
    /// Let the keys of a disabled user work again.
    #[arg(long, conflicts_with = "disable", help_heading = "Fields")]
    enable: bool,
    /// Disable the user and all keys of the user.
    #[arg(long, help_heading = "Fields")]
    disable: bool,
    /// Whether the account is locked: a locked account stops its keys, unless instances run with
    /// --account-lock ignore.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Fields")]
    locked: Option<bool>,
    /// End of the lock, such as 2026-12-31T23:59:59Z, or a duration from now, such as 2h.
    #[arg(long, value_name = "TIME", value_parser = future, help_heading = "Fields")]
    locked_until: Option<OffsetDateTime>,
    /// Field to remove the value of: role or account-locked-until; repeatable, or separated by commas.
    #[arg(long, value_name = "FIELD", value_delimiter = ',', value_parser = |text: &str| field(Resource::User, text), help_heading = "Fields")]
    clear: Vec<String>,
    #[command(flatten)]
    patch: PatchArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    database: DatabaseOptions,
}

impl Update {
    fn patch(&self) -> anyhow::Result<Patch> {
        let until = self.locked_until.and_then(|end| end.format(&Rfc3339).ok());
        let mut fields = Fields::default();
        fields.set("email", self.email.clone())?;
        fields.set("username", self.username.clone())?;
        fields.set("role", self.role.clone())?;
        fields.set("is_superuser", self.superuser)?;
        fields.set("is_active", (self.enable || self.disable).then_some(self.enable))?;
        fields.set("account_locked", self.locked)?;
        fields.set("account_locked_until", until.map(Value::from))?;
        fields.clear(&self.clear)?;
        self.patch.patch(Resource::User, fields)
    }
}

pub(super) async fn run(args: Update) -> anyhow::Result<()> {
    let patch = args.patch()?;
    args.patch.require_change(&patch);
    let Update { user, patch: flags, output, database, .. } = args;
    let opened = if flags.dry_run { open_read_only(&database)? } else { open(&database)? };
    let change = if flags.dry_run {
        opened.preview_update(Resource::User, &user, &patch, flags.if_version).await
    } else {
        opened.update_user(&user, &patch, flags.if_version).await
    };
    let change = change.map_err(|error| with_database_name(&database, error))?;
    let row = format!("user {} ({})", change.after.text("id"), change.after.text("email"));
    flags.print(&change, &row, output)?;
    if !flags.wait {
        return Ok(());
    }
    wait_for_keys(&opened, &change.after, flags.wait_args, output, &database).await
}
