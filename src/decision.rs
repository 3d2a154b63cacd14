//! The two outcomes of a check, and every reason for the second.
//!
//! `R` is the record as the store hands it out: the record alone, or with what an adapter keeps of it.

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
    /// Without a key: the route does not require one, and there was none.
    Anonymous,
}

/// A key whose whole credential was proven.
#[derive(Debug, Clone)]
pub struct Proven<R = KeyRecord> {
    /// Whose key it is and what it may do.
    pub record: Arc<R>,
    /// The tier that had the record.
    pub tier: Tier,
    /// Whether the record is past its time, and is used because no tier below memory answers.
    pub stale: bool,
    /// The state of its limits, where they are counted.
    pub limit_status: Option<LimitStatus>,
}

/// The request may not pass.
#[derive(Debug, Clone)]
pub struct Denial<R = KeyRecord> {
    /// Why.
    pub reason: Reason,
    /// The key, if it was proven before the denial: for the access log, never for the caller.
    pub proven: Option<Proven<R>>,
    /// When another try may pass, where waiting helps.
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

/// Why a request is denied: the closed list that programs can rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Envoy's description of the request cannot be read, or is too large.
    MalformedRequest,
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
    /// The key lacks a scope that the route needs.
    ScopeMissing,
    /// The key may not be used with this chatbot.
    ChatbotNotAllowed,
    /// The key may not be used with this agent.
    AgentNotAllowed,
    /// The key's budget is spent.
    BudgetExhausted,
    /// A limit of the key is used up for now.
    RateLimited,
    /// The client's network showed too many wrong keys, and others come first.
    TooManyAttempts,
    /// More keys wait to be looked up or proven than can be.
    Overloaded,
    /// A dependency did not answer.
    Unavailable,
    /// The route's settings in Envoy cannot be followed.
    RouteMisconfigured,
}

impl<R> Proven<R> {
    /// Turns into the denial of a key that was proven.
    pub fn deny(self, reason: Reason) -> Denial<R> {
        Denial { proven: Some(self), ..reason.into() }
    }

    /// Turns into the denial of a key whose limits do not have this `cost` left.
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

/// A key with this tag has its policy reported and not enforced.
pub const SHADOW_TAG: &str = "keystile:shadow";

impl<R: StoredRecord> Denial<R> {
    /// Whether the denial is only reported, and the request passes.
    ///
    /// The route's setting comes first, then the mode of the service. A key's tag is about the key's policy alone: it
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
        // A guess, for Keystile's own failures.
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
    /// Every reason, for tables of them.
    pub const ALL: [Self; 20] = [
        Self::MalformedRequest,
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
            Self::MalformedRequest => 400,
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
            | Self::AgentNotAllowed => 403,
            Self::BudgetExhausted => 402,
            Self::RateLimited | Self::TooManyAttempts => 429,
            Self::Overloaded | Self::Unavailable | Self::RouteMisconfigured => 503,
        }
    }

    /// Whether it is about what the key may be used for, and not about the key itself or about Keystile.
    fn is_policy(self) -> bool {
        matches!(self.status(), 402 | 403) || self == Self::RateLimited
    }

    /// A sentence for the caller: what happened and how to fix it.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::MalformedRequest => "The request cannot be read; its body may be too large.",
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
                "This endpoint is not set up correctly; its operator has been told why."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::sample;

    fn denial(reason: Reason, tag: &str) -> Denial {
        let record = KeyRecord { tags: vec![tag.to_owned()], ..sample::record() };
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
