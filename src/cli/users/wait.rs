//! Waits for the change of a user.

use std::num::NonZeroUsize;

use anyhow::Context;

use crate::{
    cli::{
        database::with_database_name,
        output::Output,
        wait::{WaitArgs, wait_for_instances},
    },
    config::DatabaseOptions,
    credential::Prefix,
    store::{Database, DisplayRow, KeyFilter, KeyState, PageRequest},
};

/// Waits until every instance has read the change of a user: an instance that has read a later entry of the log, for one
/// of the user's keys, has read it.
pub(super) async fn wait_for_keys(
    opened: &Database,
    user: &DisplayRow,
    wait: WaitArgs,
    output: Output,
    database: &DatabaseOptions,
) -> anyhow::Result<()> {
    let filter = KeyFilter { user: Some(user.text("id")), state: KeyState::Any, ..KeyFilter::default() };
    let page = PageRequest { limit: NonZeroUsize::new(1), ..PageRequest::default() };
    let keys =
        opened.list_keys(&filter, &page).await.map_err(|error| with_database_name(database, error))?.keys;
    let Some(prefix) = keys.first().and_then(|key| Prefix::parse(&key.text("key_prefix")).ok()) else {
        eprintln!("the user has no keys, so no instance has any in memory");
        return Ok(());
    };
    let waited = wait_for_instances(opened, Some(prefix), wait, output).await;
    waited.with_context(|| format!("user {} is changed, but not confirmed everywhere", user.text("id")))
}
