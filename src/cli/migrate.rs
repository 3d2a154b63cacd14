//! `keystile migrate`

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::{
    database::{open, open_read_only, with_database_name},
    output::print,
};
use crate::{config::DatabaseOptions, store::LogInstallation};

/// The changes to a database.
#[derive(Debug, Args)]
pub(super) struct Migrate {
    /// Whether Postgres notifies instances of changes. `off` allows two-phase commit (PREPARE TRANSACTION) for
    /// transactions that change keys; instances then read the log every 400 ms. Without this flag, it stays as it is.
    #[arg(long, env = "KEYSTILE_MIGRATE_NOTIFY", value_enum)]
    notify: Option<Notify>,
    /// Print the GRANT statements for Keystile's roles in this Postgres database, for the tables that are there, and change nothing.
    #[arg(long, conflicts_with = "notify")]
    print_grants: bool,
    /// Role of the instances in the printed statements. The role of commands that write is named the same, with `_admin` at its end.
    #[arg(long, value_name = "NAME", default_value = "keystile", requires = "print_grants")]
    role: String,
    #[command(flatten)]
    database: DatabaseOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Notify {
    On,
    Off,
}

pub(super) async fn run(args: Migrate) -> anyhow::Result<()> {
    let Migrate { notify, print_grants, role, database: options } = args;
    if print_grants {
        let grants = open_read_only(&options)?.grants(&role).await;
        let grants = grants.map_err(|error| with_database_name(&options, error.into()))?;
        let grants =
            grants.with_context(|| format!("{} has no roles and needs no grants", options.database_url))?;
        return print(&grants);
    }
    let notify = notify.map(|notify| notify == Notify::On);
    let migrated =
        open(&options)?.migrate(notify).await.map_err(|error| with_database_name(&options, error.into()))?;
    for table in migrated.created {
        print(&format!("created the table {table}\n"))?;
    }
    for table in migrated.kept {
        print(&format!("left the table {table} as it was\n"))?;
    }
    if migrated.proofs_created {
        print("created the table keystile_proofs\n")?;
    }
    if migrated.rotations_created {
        print("created the tables keystile_rotations and keystile_rotated_budgets\n")?;
    }
    match migrated.log {
        LogInstallation::Installed => print("changes of keys and users are logged now\n")?,
        LogInstallation::Kept => print("changes of keys and users are logged, as before\n")?,
        LogInstallation::Refused(_) => {}
    }
    match migrated.audit {
        LogInstallation::Installed => print("changes of keys and users are audited now\n")?,
        LogInstallation::Kept => print("changes of keys and users are audited, as before\n")?,
        LogInstallation::Refused(_) => {}
    }
    for warning in migrated.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(())
}
