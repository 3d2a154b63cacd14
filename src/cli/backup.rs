//! `keystile backup`

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;

use super::{database::open, output::print};
use crate::config::{DatabaseOptions, DatabaseUrl};

/// A copy of a SQLite database.
#[derive(Debug, Args)]
pub(super) struct Backup {
    /// The new file. It must not exist.
    file: PathBuf,
    #[command(flatten)]
    database: DatabaseOptions,
}

pub(super) async fn run(args: Backup) -> anyhow::Result<()> {
    let Backup { file, database } = args;
    let DatabaseUrl::Sqlite(path) = &database.database_url else {
        bail!(
            "keystile backup copies SQLite files; use pg_dump or pg_basebackup for --database-url {}",
            database.database_url
        );
    };
    if !path.is_file() {
        bail!("--database-url {}: there is no such file", database.database_url);
    }
    if file.exists() {
        bail!("{} exists already; name a new file", file.display());
    }
    open(&database)?.backup(&file).await?;
    print(&format!("copied {} to {}\n", path.display(), file.display()))
}
