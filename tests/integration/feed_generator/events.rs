//! What may happen to a database beside the ordinary changes of its rows.

use super::{
    schema::{ADDITIONS, Addition, Layout},
    world::World,
};

mod files;
mod servers;
mod tables;
mod writers;

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Nothing,
    // What a migration of the application's does.
    Add(Addition),
    AddGenerated,
    AddDenying,
    RenameColumn,
    DropColumn,
    Retype,
    MoveTable,
    MoveAll,
    SwapTable,
    View,
    Rewrite,
    NewChild,
    Disinherit,
    Detach,
    Attach,
    Truncate,
    TruncatePart,
    // What is done to what Keystile has put there.
    DisableTriggers,
    ReplicaTriggers,
    DropTriggers,
    DropLog,
    EmptyLog,
    SwapLog,
    HideRows,
    TakeRights,
    // What operators do to servers.
    Restore,
    Recover,
    Promote,
    LoadDump,
    LoadForeignDump,
    Crash,
    EndSessions,
    CutWire,
    PauseReplay,
    RestartInstance,
    // What writers do.
    Open,
    Prepare,
    PrepareAndCrash,
    Noise,
    InvalidateAll,
    // What is done to files.
    RenameOver,
    RemoveAndCopy,
    RestoreInto,
    Vacuum,
}

/// What becomes of the feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aftermath {
    /// It may be down for a moment.
    Passing,
    /// It may stay down until `keystile migrate`.
    Lasting,
}

impl Event {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let additions = ADDITIONS.map(Self::Add);
        let others = [
            Self::AddGenerated,
            Self::AddDenying,
            Self::RenameColumn,
            Self::DropColumn,
            Self::Retype,
            Self::MoveTable,
            Self::MoveAll,
            Self::SwapTable,
            Self::View,
            Self::Rewrite,
            Self::NewChild,
            Self::Disinherit,
            Self::Detach,
            Self::Attach,
            Self::Truncate,
            Self::TruncatePart,
            Self::DisableTriggers,
            Self::ReplicaTriggers,
            Self::DropTriggers,
            Self::DropLog,
            Self::EmptyLog,
            Self::SwapLog,
            Self::HideRows,
            Self::TakeRights,
            Self::Restore,
            Self::Recover,
            Self::Promote,
            Self::LoadDump,
            Self::LoadForeignDump,
            Self::Crash,
            Self::EndSessions,
            Self::CutWire,
            Self::PauseReplay,
            Self::RestartInstance,
            Self::Open,
            Self::Open,
            Self::Prepare,
            Self::PrepareAndCrash,
            Self::Noise,
            Self::InvalidateAll,
            Self::RenameOver,
            Self::RemoveAndCopy,
            Self::RestoreInto,
            Self::Vacuum,
            Self::Nothing,
        ];
        additions.into_iter().chain(others).collect()
    }

    /// Whether it can happen in this world now.
    pub fn fits(self, world: &World) -> bool {
        let schema = &world.schema;
        let is_postgres = schema.is_postgres;
        let reads_replica = world.reads_replica();
        let facts = &world.facts;
        match self {
            Self::Nothing | Self::InvalidateAll | Self::RestartInstance => true,
            Self::Add(addition) => match addition {
                Addition::DeletedAt => !facts.has("api_keys", "deleted_at"),
                Addition::ExpiresAt => !facts.has("api_keys", "expires_at"),
                Addition::AllowedIps => !facts.has("api_keys", "allowed_ips"),
                Addition::AccountLocked => !facts.has("users", "account_locked"),
                Addition::Spending => !facts.has("api_keys", "budget_limit_cents"),
                Addition::Budgets => !facts.has("budgets", "id"),
            },
            Self::AddGenerated => !facts.has("api_keys", "expires_at"),
            Self::AddDenying => !facts.has("users", "account_locked"),
            Self::RenameColumn | Self::DropColumn => facts.has("api_keys", "deleted_at"),
            Self::DropTriggers | Self::EmptyLog | Self::DropLog => true,
            Self::SwapTable => {
                schema.keys == Layout::Plain && !schema.is_generated && !facts.has_generated("api_keys")
            }
            Self::NewChild => {
                is_postgres
                    && !schema.has_foreign_key
                    && matches!(schema.users, Layout::Plain | Layout::Inherited)
            }
            Self::Disinherit => schema.keys == Layout::Inherited,
            Self::Detach | Self::TruncatePart => schema.keys == Layout::Ranges,
            Self::Attach => {
                schema.keys == Layout::Ranges && !schema.is_generated && !facts.has_generated("api_keys")
            }
            Self::Retype
            | Self::MoveTable
            | Self::MoveAll
            | Self::View
            | Self::Rewrite
            | Self::Truncate
            | Self::DisableTriggers
            | Self::ReplicaTriggers
            | Self::SwapLog
            | Self::HideRows
            | Self::TakeRights
            | Self::LoadDump
            | Self::LoadForeignDump
            | Self::Crash
            | Self::EndSessions
            | Self::CutWire
            | Self::Open
            | Self::Noise => is_postgres,
            Self::Restore | Self::Recover => is_postgres && !reads_replica,
            Self::Promote => is_postgres,
            Self::PauseReplay => reads_replica,
            Self::Prepare | Self::PrepareAndCrash => world.is_silent,
            Self::RenameOver | Self::RemoveAndCopy | Self::RestoreInto | Self::Vacuum => !is_postgres,
        }
    }

    /// What the next denial is to be about.
    pub fn word(self) -> Option<&'static str> {
        match self {
            Self::Add(Addition::DeletedAt) => Some("deleted_at"),
            Self::Add(Addition::ExpiresAt) => Some("expires_at"),
            Self::Add(Addition::AllowedIps) => Some("allowed_ips"),
            Self::Add(Addition::AccountLocked) => Some("account_locked"),
            Self::Add(Addition::Spending) => Some("budget_limit_cents"),
            Self::Add(Addition::Budgets) => Some("{budgets}"),
            Self::AddGenerated => Some("'ended'"),
            Self::MoveTable | Self::NewChild => Some("UPDATE {users}"),
            _ => None,
        }
    }

    /// Lets it happen.
    ///
    /// # Errors
    /// What the database says: nothing of this may fail.
    pub async fn happen(self, world: &mut World) -> Result<Aftermath, String> {
        match self {
            Self::Nothing => Ok(Aftermath::Passing),
            Self::Restore | Self::Recover | Self::Promote | Self::LoadDump | Self::LoadForeignDump => {
                servers::happen(self, world).await.map(|()| Aftermath::Passing)
            }
            Self::Crash | Self::EndSessions | Self::CutWire | Self::PauseReplay | Self::RestartInstance => {
                servers::happen(self, world).await.map(|()| Aftermath::Passing)
            }
            Self::Open | Self::Prepare | Self::PrepareAndCrash | Self::Noise | Self::InvalidateAll => {
                writers::happen(self, world).await.map(|()| Aftermath::Passing)
            }
            Self::RenameOver | Self::RemoveAndCopy | Self::RestoreInto | Self::Vacuum => {
                files::happen(self, world).await.map(|()| Aftermath::Passing)
            }
            _ => tables::happen(self, world).await,
        }
    }
}
