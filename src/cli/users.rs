//! `keystile users`

use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};

use super::{
    database::{open, open_read_only, with_database_name},
    output::Output,
};
use crate::{config::DatabaseOptions, store::NewUser};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a user, who can have keys and cannot log in.
    Create(Create),
    /// List users.
    List(List),
    /// Disable a user and all keys of the user.
    Disable(Disable),
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
pub(super) struct Disable {
    /// Id or email of the user.
    user: String,
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
        Command::Disable(Disable { user, output, database }) => {
            let user = open(&database)?.disable_user(&user).await;
            output.row(&user.map_err(|error| with_database_name(&database, error))?)
        }
    }
}
