//! Who may do what.

use crate::{
    config::ClientScope,
    record::UserId,
    store::{KeyTemplate, TokenScope},
};

/// A caller that is known.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Caller {
    /// Its identity, unique among all callers: what limits and idempotency keys are counted by.
    pub(crate) id: CallerId,
    /// Its name, for logs.
    pub(crate) name: String,
    pub(crate) scope: Scope,
}

/// The identity of a caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum CallerId {
    /// The number of a token.
    Token(i64),
    /// The name in a certificate.
    Client(String),
}

/// What a caller may do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scope {
    /// Read users and keys.
    Read,
    /// Everything.
    Write,
    /// Use the keys of one user.
    Own { user: UserId, template: Option<KeyTemplate> },
}

/// An operation of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    ListKeys,
    GetKey,
    CreateKey,
    UpdateKey,
    RotateKey,
    RevokeKey,
    ExplainKey,
    IdentifyKey,
    ListUsers,
    GetUser,
    CreateUser,
    UpdateUser,
}

impl Scope {
    /// Whether the scope has the operation at all. Which keys it reaches is decided by [`Scope::owner`].
    pub(crate) fn allows(&self, operation: Operation) -> bool {
        use Operation::{
            CreateKey, CreateUser, ExplainKey, GetKey, GetUser, IdentifyKey, ListKeys, ListUsers, RevokeKey,
            RotateKey, UpdateKey, UpdateUser,
        };
        match operation {
            ListKeys | GetKey => true,
            ExplainKey | IdentifyKey | ListUsers | GetUser => !matches!(self, Self::Own { .. }),
            CreateKey => match self {
                Self::Read => false,
                Self::Write => true,
                Self::Own { template, .. } => template.is_some(),
            },
            RotateKey | RevokeKey => !matches!(self, Self::Read),
            UpdateKey | CreateUser | UpdateUser => matches!(self, Self::Write),
        }
    }

    /// The only user whose keys exist for the caller. `None`: the keys of all users do.
    pub(crate) fn owner(&self) -> Option<UserId> {
        match self {
            Self::Read | Self::Write => None,
            Self::Own { user, .. } => Some(*user),
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Own { .. } => "own",
        }
    }
}

impl From<TokenScope> for Scope {
    fn from(scope: TokenScope) -> Self {
        match scope {
            TokenScope::Read => Self::Read,
            TokenScope::Write => Self::Write,
            TokenScope::Own { user, template } => Self::Own { user, template },
        }
    }
}

impl From<ClientScope> for Scope {
    fn from(scope: ClientScope) -> Self {
        match scope {
            ClientScope::Read => Self::Read,
            ClientScope::Write => Self::Write,
        }
    }
}

impl Operation {
    /// Its name in logs, metrics and OpenAPI.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ListKeys => "list_keys",
            Self::GetKey => "get_key",
            Self::CreateKey => "create_key",
            Self::UpdateKey => "update_key",
            Self::RotateKey => "rotate_key",
            Self::RevokeKey => "revoke_key",
            Self::ExplainKey => "explain_key",
            Self::IdentifyKey => "identify_key",
            Self::ListUsers => "list_users",
            Self::GetUser => "get_user",
            Self::CreateUser => "create_user",
            Self::UpdateUser => "update_user",
        }
    }
}

impl CallerId {
    /// A text that no other caller has.
    pub(crate) fn to_text(&self) -> String {
        match self {
            Self::Token(id) => format!("token {id}"),
            Self::Client(name) => format!("client {name}"),
        }
    }
}
