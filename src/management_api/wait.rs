//! Waits until the instances have applied a change.

use std::time::Duration;

use serde_json::{Value, json};

use super::{authentication::Session, problem::Answer};
use crate::{
    credential::Prefix,
    record::UserId,
    store::{Confirmation, Confirmations},
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
            Changed::User => match row["id"].as_i64() {
                Some(id) => self.database().prefix_of_user(UserId(id)).await?,
                None => None,
            },
        };
        // Without a prefix that a credential can have, no instance has anything in memory.
        let Some(prefix) = prefix else {
            return Ok(Applied { is_complete: true, instances: json!({ "confirmed": [], "missing": [] }) });
        };
        let database = self.database();
        let confirmed = database.invalidate(Some(prefix), timeout).await?;
        // Instances read a file four times a second, and do not confirm.
        let is_complete = database.is_file() || confirmed.state() == Confirmation::Complete;
        let Confirmations { dropped, silent } = confirmed;
        let instances = if self.caller.scope.owner().is_some() {
            // The names of instances are no business of a user.
            json!({ "confirmed": dropped.len(), "missing": silent.len() })
        } else {
            json!({ "confirmed": dropped, "missing": silent })
        };
        Ok(Applied { is_complete, instances })
    }
}
