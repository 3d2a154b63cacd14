//! Waits until the instances have applied a change.

use std::{num::NonZeroUsize, time::Duration};

use serde_json::{Value, json};

use super::{authentication::Session, problem::Answer};
use crate::{
    credential::Prefix,
    store::{Confirmations, KeyFilter, KeyState, PageRequest},
};

/// What instances must have read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changed {
    /// A key.
    Key,
    /// A user.
    User,
}

/// Which instances have applied a change.
pub(super) struct Applied {
    pub(super) is_complete: bool,
    pub(super) instances: Value,
}

impl Session {
    /// Waits until the instances have applied the change of this row.
    pub(super) async fn wait(&self, changed: Changed, row: &Value, timeout: Duration) -> Answer<Applied> {
        let prefix = match changed {
            Changed::Key => row["key_prefix"].as_str().and_then(|prefix| Prefix::parse(prefix).ok()),
            Changed::User => self.prefix_of(row).await?,
        };
        // Without a prefix that a credential can have, no instance has anything in memory.
        let Some(prefix) = prefix else {
            return Ok(Applied { is_complete: true, instances: json!({ "confirmed": [], "missing": [] }) });
        };
        let database = self.database();
        let Confirmations { dropped, silent } = database.invalidate(Some(prefix), timeout).await?;
        // Instances read a file four times a second, and do not confirm.
        let is_complete = database.is_file() || (silent.is_empty() && !dropped.is_empty());
        let instances = if self.caller.scope.owner().is_some() {
            // The names of instances are no business of a user.
            json!({ "confirmed": dropped.len(), "missing": silent.len() })
        } else {
            json!({ "confirmed": dropped, "missing": silent })
        };
        Ok(Applied { is_complete, instances })
    }

    /// An instance that has read a later entry of the log, for one of the user's keys, has read the change of the user.
    async fn prefix_of(&self, user: &Value) -> Answer<Option<Prefix>> {
        let Some(id) = user["id"].as_i64() else { return Ok(None) };
        let filter = KeyFilter { user: Some(id.to_string()), state: KeyState::Any, ..KeyFilter::default() };
        let page = PageRequest { limit: NonZeroUsize::new(1), ..PageRequest::default() };
        let keys = self.database().list_keys(&filter, &page).await?.keys;
        Ok(keys.first().and_then(|key| Prefix::parse(&key.text("key_prefix")).ok()))
    }
}
