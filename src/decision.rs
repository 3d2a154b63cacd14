//! The two outcomes of a check, and every reason for the second.

use std::sync::Arc;

use crate::record::KeyRecord;

/// The request may pass, as this key.
#[derive(Debug, Clone)]
pub struct Permit {
    /// Whose key it is and what it may do.
    pub record: Arc<KeyRecord>,
    /// Where the record came from.
    pub tier: Tier,
}

/// The request may not pass.
#[derive(Debug, Clone)]
pub struct Denial {
    /// Why.
    pub reason: Reason,
    /// The key, when it was proven before something else stood against it: for the access log,
    /// never for the caller.
    pub proven: Option<Permit>,
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// This process.
    Memory,
    /// The database.
    Database,
}

/// Why a request is denied: the closed list that programs can rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No source of credentials had one.
    MissingCredential,
    /// What was presented cannot be an API key.
    MalformedCredential,
    /// Two different credentials in one request.
    AmbiguousCredential,
    /// Unknown key and wrong secret alike.
    InvalidCredential,
    /// The key was revoked.
    Disabled,
    /// The key's time is over.
    Expired,
    /// The key's user is inactive or locked.
    UserInactive,
    /// The key may not be used from this address.
    IpNotAllowed,
    /// The key may not be used for this method and path.
    EndpointNotAllowed,
    /// The key may not be used with this model.
    ModelNotAllowed,
    /// The key may not be used with this chatbot.
    ChatbotNotAllowed,
    /// The key may not be used with this agent.
    AgentNotAllowed,
    /// More keys wait to be proven than can be.
    Overloaded,
    /// Something that the answer depends on did not answer.
    Unavailable,
}

impl Permit {
    /// Turns into the denial of a key that was proven.
    pub fn deny(self, reason: Reason) -> Denial {
        Denial { reason, proven: Some(self) }
    }
}

impl From<Reason> for Denial {
    fn from(reason: Reason) -> Self {
        Self { reason, proven: None }
    }
}

impl Tier {
    /// The name in metadata and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Database => "database",
        }
    }
}

impl Reason {
    /// Every reason, for tables of them.
    pub const ALL: [Self; 14] = [
        Self::MissingCredential,
        Self::MalformedCredential,
        Self::AmbiguousCredential,
        Self::InvalidCredential,
        Self::Disabled,
        Self::Expired,
        Self::UserInactive,
        Self::IpNotAllowed,
        Self::EndpointNotAllowed,
        Self::ModelNotAllowed,
        Self::ChatbotNotAllowed,
        Self::AgentNotAllowed,
        Self::Overloaded,
        Self::Unavailable,
    ];

    /// The stable code for programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::MissingCredential => "missing_credential",
            Self::MalformedCredential => "malformed_credential",
            Self::AmbiguousCredential => "ambiguous_credential",
            Self::InvalidCredential => "invalid_credential",
            Self::Disabled => "disabled",
            Self::Expired => "expired",
            Self::UserInactive => "user_inactive",
            Self::IpNotAllowed => "ip_not_allowed",
            Self::EndpointNotAllowed => "endpoint_not_allowed",
            Self::ModelNotAllowed => "model_not_allowed",
            Self::ChatbotNotAllowed => "chatbot_not_allowed",
            Self::AgentNotAllowed => "agent_not_allowed",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
        }
    }

    /// The HTTP status of the answer.
    pub fn status(self) -> u16 {
        match self {
            Self::MissingCredential
            | Self::MalformedCredential
            | Self::AmbiguousCredential
            | Self::InvalidCredential
            | Self::Disabled
            | Self::Expired
            | Self::UserInactive => 401,
            Self::IpNotAllowed
            | Self::EndpointNotAllowed
            | Self::ModelNotAllowed
            | Self::ChatbotNotAllowed
            | Self::AgentNotAllowed => 403,
            Self::Overloaded | Self::Unavailable => 503,
        }
    }

    /// A sentence for the person at the other end: what happened and what mends it.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::MissingCredential => {
                "This API needs an API key; send it as \"Authorization: Bearer <key>\" or as the provider documents."
            }
            Self::MalformedCredential => {
                "The API key sent is not well-formed; check that it was copied whole and without extra characters."
            }
            Self::AmbiguousCredential => "Two different API keys were sent in one request; send one.",
            Self::InvalidCredential => "The API key is not valid.",
            Self::Disabled => "The API key has been disabled.",
            Self::Expired => "The API key has expired.",
            Self::UserInactive => "The account that the API key belongs to is not active.",
            Self::IpNotAllowed => "The API key may not be used from this address.",
            Self::EndpointNotAllowed => "The API key may not be used for this endpoint.",
            Self::ModelNotAllowed => "The API key may not be used with this model.",
            Self::ChatbotNotAllowed => "The API key may not be used with this chatbot.",
            Self::AgentNotAllowed => "The API key may not be used with this agent.",
            Self::Overloaded => "Too many API keys are being verified at the moment; try again shortly.",
            Self::Unavailable => "The API key could not be verified at the moment; try again shortly.",
        }
    }
}
