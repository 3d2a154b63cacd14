//! Waits for the change of a user.

use anyhow::Context;

use crate::{
    cli::{
        database::with_database_name,
        output::Output,
        wait::{WaitArgs, wait_for_instances},
    },
    config::DatabaseOptions,
    record::UserId,
    store::{Database, DisplayRow},
};

/// Waits until every instance has read the change of a user.
pub(super) async fn wait_for_keys(
    opened: &Database,
    user: &DisplayRow,
    wait: WaitArgs,
    output: Output,
    database: &DatabaseOptions,
) -> anyhow::Result<()> {
    let prefix = match user.get("id").as_i64() {
        Some(id) => {
            opened.prefix_of_user(UserId(id)).await.map_err(|error| with_database_name(database, error))?
        }
        None => None,
    };
    let Some(prefix) = prefix else {
        eprintln!("the user has no keys, so no instance has any in memory");
        return Ok(());
    };
    let waited = wait_for_instances(opened, Some(prefix), wait, output).await;
    waited.with_context(|| format!("user {} is changed, but not confirmed everywhere", user.text("id")))
}
