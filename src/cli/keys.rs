//! `keystile keys`

use std::io::{IsTerminal, Read};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use zeroize::Zeroizing;

use super::{
    argument::refuse_whole_key,
    database::{open, open_read_only, with_database_name},
    output::Output,
};
use crate::{
    config::DatabaseOptions,
    credential::{Credential, MAX_LEN, generate},
};

mod bulk_revoke;
mod create;
mod credential_output;
mod import;
mod list;
mod list_flags;
mod revoke;
mod rotate;
mod update;

use create::Create;
use import::Import;
use list::{COLUMNS, List};
use revoke::Revoke;
use rotate::Rotate;
use update::Update;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a key and print its secret, this once.
    Create(Box<Create>),
    /// List keys, newest first, a page at a time.
    List(Box<List>),
    /// Show one key: by id, by prefix, or by the key itself on stdin.
    Show(Show),
    /// Change a key: by flags, or by a JSON merge patch (RFC 7386).
    Update(Box<Update>),
    /// Create the successor of a key and print its secret, this once. The key ends now, or after an overlap.
    Rotate(Box<Rotate>),
    /// Revoke a key, and the keys that it was rotated from and to; or every key that conditions select.
    Revoke(Revoke),
    /// Import keys from a file: rows with their hashes, or what Kong or Unkey exports. All of them or none.
    Import(Box<Import>),
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// Id or prefix; `-` reads a whole key from stdin, so that it stays out of the shell's history.
    #[arg(value_name = "ID|PREFIX|-", allow_hyphen_values = true)]
    key: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    database: DatabaseOptions,
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create(args) => create(args).await,
        Command::List(args) => list::run(*args).await,
        Command::Show(args) if args.key == "-" => identify(args).await,
        Command::Show(Show { key, output, database }) => {
            refuse_whole_key(&key)?;
            let opened = open_read_only(&database)?;
            let name = |error| with_database_name(&database, error);
            let keys = opened.find_keys(&key).await.map_err(name)?;
            match &keys[..] {
                [] => bail!("no key has the id or prefix {key}; see `keystile keys list --all`"),
                [key] => output.row(&opened.with_chain(key.clone()).await.map_err(name)?),
                several => output.rows(several, COLUMNS, ""),
            }
        }
        Command::Update(args) => update::run(*args).await,
        Command::Rotate(args) => rotate::run(*args).await,
        Command::Revoke(args) => revoke::run(args).await,
        Command::Import(args) => import::run(*args).await,
    }
}

async fn create(args: Box<Create>) -> anyhow::Result<()> {
    let database = open(&args.database)?;
    let target = args.output.open()?;
    let (key, credential) = database
        .create_key(&args.new_key(), &args.brand, args.cost.of_new_hashes())
        .await
        .map_err(|error| with_database_name(&args.database, error))?;
    target.write(&key, &credential, &format!("created key {} of {}", key.text("id"), key.text("user_email")))
}

/// Finds the key of a credential. A typo is recognised without the database.
async fn identify(Show { output, database, .. }: Show) -> anyhow::Result<()> {
    if std::io::stdin().is_terminal() {
        eprintln!("type or paste the key, then Enter and Ctrl-D:");
    }
    let mut text = Zeroizing::new(String::with_capacity(4 * MAX_LEN));
    std::io::stdin().take(4 * MAX_LEN as u64).read_to_string(&mut text).context("reading stdin")?;
    let credential = Credential::parse(text.trim().as_bytes()).context("the key on stdin")?;
    let is_ours = generate::checksum_holds(credential.expose());
    if !is_ours && credential.expose().len() == generate::LEN {
        bail!("the key on stdin has a typo: its checksum does not hold; copy it again");
    }
    let opened = open_read_only(&database)?;
    let key = opened.identify(&credential).await.map_err(|error| with_database_name(&database, error))?;
    match key {
        Some(key) => output.row(&key),
        None if is_ours => bail!("the key on stdin is well-formed, but no key in this database"),
        None => bail!(
            "the key on stdin is no key in this database, nor was it made by keystile: \
             such a key has {} characters and a checksum",
            generate::LEN
        ),
    }
}
