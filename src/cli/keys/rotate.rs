//! `keystile keys rotate`

use anyhow::Context;
use clap::{Args, builder::NonEmptyStringValueParser};
use time::OffsetDateTime;

use super::{create::expiry, credential_output::CredentialOutput};
use crate::{
    cli::{
        argument::refuse_whole_key,
        database::{open, with_database_name},
        wait::{WaitArgs, wait_behind_credential},
    },
    config::{BcryptCost, DatabaseOptions},
    credential::{Prefix, generate::Brand},
    store::{KeyRotation, RotatedKey},
};

#[derive(Debug, Args)]
pub(crate) struct Rotate {
    /// Id or prefix.
    #[arg(value_name = "ID|PREFIX")]
    key: String,
    /// How long both keys work, such as 7d, or until when, such as 2026-12-31T23:59:59Z. Without it, the key ends at
    /// once.
    #[arg(long, value_name = "TIME", value_parser = overlap)]
    overlap: Option<Overlap>,
    /// Expiry time of the successor, or a duration from now, such as 90d. Without it, the successor expires when the key
    /// would have expired.
    #[arg(long, value_name = "TIME", value_parser = expiry)]
    expires_at: Option<OffsetDateTime>,
    /// Name of the successor. Without it, the name of the key.
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Wait until every instance that listens to the database's changes has read the rotation, and fail if one has not.
    /// Instances that do not listen are unknown. With SQLite, wait half a second.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    wait_args: WaitArgs,

    /// Beginning of the successor: at most 4 characters.
    #[arg(long, env = "KEYSTILE_KEY_BRAND", default_value = "ks_", help_heading = "Making")]
    brand: Brand,
    /// bcrypt cost of the hash. Each step doubles the work to prove the key, and to guess it. `auto` is 12.
    #[arg(long, env = "KEYSTILE_BCRYPT_COST", default_value = "auto", help_heading = "Making")]
    cost: BcryptCost,

    #[command(flatten)]
    output: CredentialOutput,
    #[command(flatten)]
    database: DatabaseOptions,
}

/// The end of an overlap. `None` is now.
type Overlap = Option<OffsetDateTime>;

pub(super) async fn run(args: Rotate) -> anyhow::Result<()> {
    refuse_whole_key(&args.key)?;
    let Rotate { key, overlap, expires_at, name, output, .. } = args;
    let database = open(&args.database)?;
    let target = output.open()?;
    let rotation = KeyRotation { ends_at: overlap.flatten(), expires_at, name };
    let rotated = database.rotate_key(&key, &rotation, &args.brand, args.cost.of_new_hashes()).await;
    let rotated = rotated.map_err(|error| with_database_name(&args.database, error))?;
    let RotatedKey { predecessor, successor, credential } = rotated;
    let (old, new) = (predecessor.text("id"), successor.text("id"));
    let end = if rotation.ends_at.is_none() {
        "now".to_owned()
    } else {
        format!("at {}", predecessor.text("expires_at"))
    };
    let done = format!("created key {new} of {}; key {old} ends {end}", successor.text("user_email"));
    target.write(&successor, &credential, &done)?;
    if !args.wait {
        return Ok(());
    }
    let prefix = Prefix::parse(&predecessor.text("key_prefix"));
    let prefix =
        prefix.with_context(|| format!("key {old} is rotated; no credential can have its prefix"))?;
    let waited = wait_behind_credential(&database, prefix, args.wait_args).await;
    waited.with_context(|| format!("key {old} is rotated, but not confirmed everywhere"))
}

fn overlap(text: &str) -> Result<Overlap, String> {
    if matches!(text, "0" | "0s") { Ok(None) } else { expiry(text).map(Some) }
}
