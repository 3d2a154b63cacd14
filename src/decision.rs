//! The two outcomes of a check, and every reason for a denial.
//!
//! `R` is the record as the store returns it: the record alone, or together with data that an adapter keeps for it.

use std::{sync::Arc, time::Duration};

use crate::{
    limits::LimitStatus,
    record::{KeyRecord, StoredRecord},
};

/// The request may pass.
#[derive(Debug, Clone)]
pub enum Permit<R = KeyRecord> {
    /// As this key.
    Key(Proven<R>),
    /// Without a key: the route does not require one, and the request had none.
    Anonymous,
}

/// A key whose whole credential was proven.
#[derive(Debug, Clone)]
pub struct Proven<R = KeyRecord> {
    /// Whose key it is and what it may do.
    pub record: Arc<R>,
    /// The tier that returned the record.
    pub tier: Tier,
    /// Whether the record has exceeded its cache time, and is used because no tier below memory answers.
    pub stale: bool,
    /// The state of the key's limits, if they are counted.
    pub limit_status: Option<LimitStatus>,
}

/// The request may not pass.
#[derive(Debug, Clone)]
pub struct Denial<R = KeyRecord> {
    /// Why.
    pub reason: Reason,
    /// The key, if it was proven before the denial. For the access log only, never for the caller.
    pub proven: Option<Proven<R>>,
    /// Time until a retry may pass, if waiting helps.
    pub retry_after: Option<Duration>,
}

/// Where a record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// This process.
    Memory,
    /// Redis.
    Redis,
    /// The database.
    Database,
}

/// Why a request is denied: a closed list that programs can rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Envoy's description of the request cannot be read, or is too large.
    MalformedRequest,
    /// Envoy asks about a TCP connection, and not about an HTTP request.
    NotHttp,
    /// The request has a credential in none of the configured sources.
    MissingCredential,
    /// The credential sent cannot be an API key.
    MalformedCredential,
    /// The request has two different credentials.
    AmbiguousCredential,
    /// The key is unknown, or its secret is wrong. The answer does not tell which.
    InvalidCredential,
    /// The key was revoked.
    Disabled,
    /// The key has expired.
    Expired,
    /// The key's user is inactive or locked.
    UserInactive,
    /// The key may not be used from this address.
    IpNotAllowed,
    /// The key may not be used for this method and path.
    EndpointNotAllowed,
    /// The key may not be used with this model.
    ModelNotAllowed,
    /// The key lacks a scope that the route needs.
    ScopeMissing,
    /// The key may not be used with this chatbot.
    ChatbotNotAllowed,
    /// The key may not be used with this agent.
    AgentNotAllowed,
    /// The list of extraction templates that the key may be used with cannot be read.
    ExtractTemplateNotAllowed,
    /// The key's budget is spent.
    BudgetExhausted,
    /// A limit of the key is used up for now.
    RateLimited,
    /// The client's network sent too many wrong keys, and other clients have priority.
    TooManyAttempts,
    /// More keys are waiting for a lookup or a proof than the queues can hold.
    Overloaded,
    /// A dependency did not answer.
    Unavailable,
    /// The route's settings in Envoy are invalid.
    RouteMisconfigured,
}

impl<R> Proven<R> {
    /// Converts to the denial of a proven key.
    pub fn deny(self, reason: Reason) -> Denial<R> {
        Denial { proven: Some(self), ..reason.into() }
    }

    /// Converts to the denial of a key whose limits have less than `cost` remaining.
    pub fn limit(self, limit_status: LimitStatus, cost: u64) -> Denial<R> {
        let retry_after = Some(limit_status.retry_after(cost));
        let proven = Some(Self { limit_status: Some(limit_status), ..self });
        Denial { reason: Reason::RateLimited, proven, retry_after }
    }
}

impl<R: StoredRecord> Proven<R> {
    /// Whose key it is and what it may do.
    pub fn record(&self) -> &KeyRecord {
        self.record.record()
    }
}

/// The policy of a key with this tag is reported and not enforced.
pub const SHADOW_TAG: &str = "keystile:shadow";

impl<R: StoredRecord> Denial<R> {
    /// Whether the denial is only reported, and the request passes.
    ///
    /// The route's setting comes first, then the mode of the service. A key's tag affects only the key's policy: it
    /// does not revive a revoked or expired key.
    pub fn is_shadowed(&self, route: Option<bool>, service: bool) -> bool {
        let tagged = || {
            let record = self.proven.as_ref().map(Proven::record);
            record.is_some_and(|record| record.tags.iter().any(|tag| tag == SHADOW_TAG))
                && self.reason.is_policy()
        };
        route.unwrap_or_else(|| service || tagged())
    }
}

impl<R> From<Reason> for Denial<R> {
    fn from(reason: Reason) -> Self {
        // An estimate, for Keystile's own failures.
        let passing = matches!(reason, Reason::Overloaded | Reason::Unavailable);
        Self { reason, proven: None, retry_after: passing.then_some(Duration::from_secs(1)) }
    }
}

impl Tier {
    /// The name in metadata and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redis => "redis",
            Self::Database => "database",
        }
    }
}

impl Reason {
    /// Every reason, for tables.
    pub const ALL: [Self; 22] = [
        Self::MalformedRequest,
        Self::NotHttp,
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
        Self::ScopeMissing,
        Self::ChatbotNotAllowed,
        Self::AgentNotAllowed,
        Self::ExtractTemplateNotAllowed,
        Self::BudgetExhausted,
        Self::RateLimited,
        Self::TooManyAttempts,
        Self::Overloaded,
        Self::Unavailable,
        Self::RouteMisconfigured,
    ];

    /// The stable code for programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::MalformedRequest => "malformed_request",
            Self::NotHttp => "not_http",
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
            Self::ScopeMissing => "scope_missing",
            Self::ChatbotNotAllowed => "chatbot_not_allowed",
            Self::AgentNotAllowed => "agent_not_allowed",
            Self::ExtractTemplateNotAllowed => "extract_template_not_allowed",
            Self::BudgetExhausted => "budget_exhausted",
            Self::RateLimited => "rate_limited",
            Self::TooManyAttempts => "too_many_attempts",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::RouteMisconfigured => "route_misconfigured",
        }
    }

    /// The HTTP status of the answer.
    pub fn status(self) -> u16 {
        match self {
            Self::MalformedRequest | Self::NotHttp => 400,
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
            | Self::ScopeMissing
            | Self::ChatbotNotAllowed
            | Self::AgentNotAllowed
            | Self::ExtractTemplateNotAllowed => 403,
            Self::BudgetExhausted => 402,
            Self::RateLimited | Self::TooManyAttempts => 429,
            Self::Overloaded | Self::Unavailable | Self::RouteMisconfigured => 503,
        }
    }

    /// Whether the reason concerns the permitted use of the key, and not the key itself or Keystile.
    fn is_policy(self) -> bool {
        matches!(self.status(), 402 | 403) || self == Self::RateLimited
    }

    /// A sentence for the caller: the cause and the fix.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::MalformedRequest => "The request cannot be read; its body may be too large.",
            Self::NotHttp => "This connection is not HTTP, so it has no API key.",
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
            Self::ScopeMissing => "The API key lacks a scope that this endpoint needs.",
            Self::ChatbotNotAllowed => "The API key may not be used with this chatbot.",
            Self::AgentNotAllowed => "The API key may not be used with this agent.",
            Self::ExtractTemplateNotAllowed => "The API key may not be used with this extraction template.",
            Self::BudgetExhausted => "The budget of the API key is spent.",
            Self::RateLimited => {
                "The API key has used up its limit for now; try again after the time in Retry-After."
            }
            Self::TooManyAttempts => {
                "Too many wrong API keys were sent from this network; try again after the time in Retry-After."
            }
            Self::Overloaded => "Too many API keys are being verified at the moment; try again shortly.",
            Self::Unavailable => "The API key could not be verified at the moment; try again shortly.",
            Self::RouteMisconfigured => {
                "This endpoint is not set up correctly; the reason is in the log of its operator."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixtures;

    fn denial(reason: Reason, tag: &str) -> Denial {
        let record = KeyRecord { tags: vec![tag.to_owned()], ..fixtures::record() };
        Proven { record: Arc::new(record), tier: Tier::Memory, stale: false, limit_status: None }.deny(reason)
    }

    #[test]
    fn route_comes_before_service_and_tag() {
        for tag in [SHADOW_TAG, "other"] {
            for service in [true, false] {
                assert!(denial(Reason::ScopeMissing, tag).is_shadowed(Some(true), service));
                assert!(!denial(Reason::ScopeMissing, tag).is_shadowed(Some(false), service));
            }
        }
    }

    #[test]
    fn tag_is_about_policy_and_revives_no_key() {
        for reason in Reason::ALL {
            let shadowed = denial(reason, SHADOW_TAG).is_shadowed(None, false);
            let is_policy = [402, 403].contains(&reason.status()) || reason == Reason::RateLimited;
            assert_eq!(shadowed, is_policy, "{reason:?}");
            assert!(!denial(reason, "other").is_shadowed(None, false));
            assert!(<Denial>::from(reason).is_shadowed(None, true));
        }
    }
}
