//! `keystile users`

use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};

use super::{
    database::{open, open_read_only, with_database_name},
    output::{Output, OutputFormat},
    wait::WaitArgs,
};
use crate::{config::DatabaseOptions, store::NewUser};

mod update;
mod wait;

use update::Update;
use wait::wait_for_keys;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a user, who can have keys and cannot log in.
    Create(Create),
    /// List users.
    List(List),
    /// Change a user: by flags, or by a JSON merge patch (RFC 7386).
    Update(Box<Update>),
    /// Disable a user and all keys of the user.
    Disable(SetActive),
    /// Let a disabled user's keys work again.
    Enable(SetActive),
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Email address. It must be unique.
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    email: String,
    /// Name. It must be unique.
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    username: String,
    /// Role, as upstreams receive it.
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    role: Option<String>,
    /// Report the user to upstreams as a superuser. It allows nothing in Keystile.
    #[arg(long)]
    superuser: bool,
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
pub(super) struct SetActive {
    /// Id or email of the user.
    user: String,
    /// Wait until every instance that listens to the database's changes has dropped the user's keys, and fail if one has
    /// not. Instances that do not listen are unknown. With SQLite, wait half a second.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    wait_args: WaitArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    database: DatabaseOptions,
}

const COLUMNS: &[(&str, &str)] = &[
    ("ID", "id"),
    ("Email", "email"),
    ("Name", "username"),
    ("Role", "role"),
    ("Active", "is_active"),
    ("Created", "created_at"),
];

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create(args) => {
            let Create { email, username, role, superuser, output, database } = args;
            let new = NewUser { email, username, role, superuser };
            let user = open(&database)?.create_user(&new).await;
            output.row(&user.map_err(|error| with_database_name(&database, error))?)
        }
        Command::List(List { output, database }) => {
            let users = open_read_only(&database)?
                .list_users()
                .await
                .map_err(|error| with_database_name(&database, error))?;
            output.rows(&users, COLUMNS, "no users yet; create one with `keystile users create`")
        }
        Command::Update(args) => update::run(*args).await,
        Command::Disable(args) => set_active(args, false).await,
        Command::Enable(args) => set_active(args, true).await,
    }
}

async fn set_active(args: SetActive, is_active: bool) -> anyhow::Result<()> {
    let SetActive { user, wait, wait_args, output, database } = args;
    let opened = open(&database)?;
    let changed = if is_active { opened.enable_user(&user).await } else { opened.disable_user(&user).await };
    let user = changed.map_err(|error| with_database_name(&database, error))?;
    // Waiting prints its own JSON.
    if !(wait && output.output == OutputFormat::Json) {
        output.row(&user)?;
    }
    if wait { wait_for_keys(&opened, &user, wait_args, output, &database).await } else { Ok(()) }
}
