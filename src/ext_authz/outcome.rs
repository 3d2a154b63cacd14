//! What becomes of a request: the decision about its key, in the mode of its route and of the service.

use std::ops::Index;

use super::encoded_record::EncodedRecord;
use crate::{
    config::{Mode, OnFailure},
    decision::{self, Permit, Reason},
};

/// A proven key, with what is encoded of its record.
pub(super) type Proven = decision::Proven<EncodedRecord>;
/// A denial, with what is encoded of the key's record.
pub(super) type Denial = decision::Denial<EncodedRecord>;

/// What becomes of a request.
pub(super) enum Outcome {
    Allow(Admission),
    Deny(Denial),
    /// Envoy's failure mode decides.
    Defer(Denial),
}

/// Why a request passes.
pub(super) enum Admission {
    /// With this key.
    Key(Proven),
    /// The route needs no key.
    Anonymous,
    /// The denial is only reported.
    Shadow(Denial),
}

/// One value for each reason.
pub(super) struct PerReason<T>([T; Reason::ALL.len()]);

impl Outcome {
    /// Takes the decision, and what the route says of shadow mode.
    pub(super) fn new(
        decision: Result<Permit<EncodedRecord>, Denial>,
        route_shadow: Option<bool>,
        mode: Mode,
        on_failure: OnFailure,
    ) -> Self {
        let denial = match decision {
            Ok(Permit::Key(proven)) => return Self::Allow(Admission::Key(proven)),
            Ok(Permit::Anonymous) => return Self::Allow(Admission::Anonymous),
            Err(denial) => denial,
        };
        if denial.is_shadowed(route_shadow, mode == Mode::Shadow) {
            return Self::Allow(Admission::Shadow(denial));
        }
        // Envoy's failure mode gets only failures that no caller can cause. A proven key whose limits cannot be counted
        // is denied because the operator said so.
        let is_failure = denial.reason == Reason::Unavailable && denial.proven.is_none();
        if is_failure && on_failure == OnFailure::Defer { Self::Defer(denial) } else { Self::Deny(denial) }
    }

    /// The outcome in a word.
    pub(super) fn result(&self) -> &'static str {
        match self {
            Self::Allow(Admission::Key(_)) => "allow",
            Self::Allow(Admission::Anonymous) => "anonymous",
            Self::Allow(Admission::Shadow(denial)) | Self::Deny(denial) | Self::Defer(denial) => {
                denial.reason.code()
            }
        }
    }

    /// The key, if one was proven.
    pub(super) fn proven(&self) -> Option<&Proven> {
        match self {
            Self::Allow(admission) => admission.proven(),
            Self::Deny(denial) | Self::Defer(denial) => denial.proven.as_ref(),
        }
    }
}

impl Admission {
    /// The key, if one was proven.
    pub(super) fn proven(&self) -> Option<&Proven> {
        match self {
            Self::Key(proven) => Some(proven),
            Self::Anonymous => None,
            Self::Shadow(denial) => denial.proven.as_ref(),
        }
    }
}

impl<T> PerReason<T> {
    pub(super) fn new(value: impl FnMut(Reason) -> T) -> Self {
        Self(Reason::ALL.map(value))
    }
}

impl<T> Index<Reason> for PerReason<T> {
    type Output = T;

    fn index(&self, reason: Reason) -> &T {
        &self.0[reason as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_value() {
        let codes = PerReason::new(Reason::code);
        for reason in Reason::ALL {
            assert_eq!(codes[reason], reason.code());
        }
    }
}
