//! `keystile migrate`

use super::{name, open, output::print};
use crate::{config::DatabaseOptions, store::Log};

pub(super) async fn run(options: DatabaseOptions) -> anyhow::Result<()> {
    let migrated = open(&options)?.migrate().await.map_err(|error| name(&options, error.into()))?;
    for table in migrated.created {
        print(&format!("created the table {table}\n"))?;
    }
    for table in migrated.kept {
        print(&format!("left the table {table} as it was\n"))?;
    }
    if migrated.proofs_created {
        print("created the table keystile_proofs\n")?;
    }
    match migrated.log {
        Log::Made => print("changes of keys and users are logged now\n")?,
        Log::Kept => print("changes of keys and users are logged, as before\n")?,
        Log::Refused(_) => {}
    }
    for warning in migrated.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(())
}
