//! The five steps of a check: what Keystile does. How is in the modules that it asks.

use std::{future::Future, sync::Arc, task::Poll, time::Instant};

use tokio::time::error::Elapsed;

use crate::{
    attributes::Attributes,
    clock::Timestamps,
    credential::Credential,
    decision::{Denial, Permit, Proven, Reason},
    limiter::{RateLimiter, Refusal},
    limits::Charge,
    policy::{self, Facts},
    record::StoredRecord,
    store::{KeyStore, Lookup, StoreError},
    verifier::{Caller, ProofError, Verifier},
};

/// Decides about requests.
pub struct Authorizer<S, L> {
    store: S,
    verifier: Verifier,
    limiter: L,
}

impl<S, L: RateLimiter> Authorizer<S, L> {
    /// Decides by the records of `store`, the proofs of `verifier` and the counts of `limiter`.
    pub fn new(store: S, verifier: Verifier, limiter: L) -> Self {
        Self { store, verifier, limiter }
    }

    /// Decides about one request that arrived `now`, before `deadline`.
    ///
    /// # Errors
    /// The [`Denial`], with the first reason that stands against the request. Deny is what happens
    /// when nothing said allow: the one way to a [`Permit`] is through every step.
    pub async fn check<R: StoredRecord>(
        &self,
        attributes: &Attributes<'_>,
        now: Timestamps,
        deadline: Instant,
    ) -> Result<Permit<R>, Denial<R>>
    where
        S: KeyStore<R>,
    {
        // 0 route: a restriction that cannot be read must not be missed.
        let route = attributes.route.as_ref().map_err(|_| Reason::RouteMisconfigured)?;
        // 1 credential: no I/O for what cannot be a key.
        let credential = match &attributes.credential {
            Err(Reason::MissingCredential) if route.admits_anonymous() => return Ok(Permit::Anonymous),
            presented => presented.as_ref().map_err(|reason| *reason)?,
        };
        // 2 records: all that the credential might belong to.
        let records = self.store.records(credential.prefix(), now);
        let found = within(deadline, records, || self.late::<R>()).await?;
        // 3 proof: the whole credential, before anything about its key matters.
        let caller = Caller { client: attributes.vouched_client, now, deadline };
        let proof = self.prove(credential, found, &caller);
        let proven = within(deadline, proof, || self.late::<R>()).await?;
        // 4 policy: the key's own, on every request.
        let facts = Facts { record: proven.record(), attributes, route, now: now.wall };
        if let Err(reason) = policy::check(&facts) {
            return Err(proven.deny(reason));
        }
        // 5 limits: last, so that what is denied is charged nothing.
        let record = proven.record();
        let charge = Charge { key: record.id, limits: record.limits, cost: route.cost };
        self.charge(charge, proven, deadline).await.map(Permit::Key)
    }

    /// Charges at the time of the limiter, which is not the time of arrival: a window may end during a first proof.
    async fn charge<R: StoredRecord>(
        &self,
        charge: Charge,
        proven: Proven<R>,
        deadline: Instant,
    ) -> Result<Proven<R>, Denial<R>> {
        if charge.limits.is_empty() || !self.limiter.is_enabled() {
            return Ok(proven);
        }
        match before(deadline, self.limiter.charge(charge)).await {
            Ok(Ok(limit_status)) => Ok(Proven { limit_status, ..proven }),
            Ok(Err(Refusal::Limited(limit_status))) => Err(proven.limit(limit_status, charge.cost())),
            Ok(Err(Refusal::Unavailable)) => Err(proven.deny(Reason::Unavailable)),
            Ok(Err(Refusal::Overloaded)) | Err(_) => Err(proven.deny(Reason::Overloaded)),
        }
    }

    /// Proves the credential by what was found; where that has no hash and no proof, by what the database has.
    async fn prove<R: StoredRecord>(
        &self,
        credential: &Credential,
        found: Arc<Lookup<R>>,
        caller: &Caller,
    ) -> Result<Proven<R>, Denial<R>>
    where
        S: KeyStore<R>,
    {
        match self.verifier.prove(credential, &found, caller).await {
            Err(ProofError::Unhashed) => {}
            proof => return Ok(found.proven(proof?)),
        }
        // Apart, so that a check of a proven key is not the size of one that reads the hash.
        let with_hash = async {
            let found = self.store.hashed(credential.prefix(), caller.now).await?;
            let proof = self.verifier.prove(credential, &found, caller).await;
            Ok(found.proven(proof?))
        };
        Box::pin(with_hash).await
    }

    /// Why a check has no answer at its deadline. Callers can make it late by being many; only if the store answers
    /// Keystile's own reads no more is it an outage.
    fn late<R: StoredRecord>(&self) -> Reason
    where
        S: KeyStore<R>,
    {
        if self.store.is_lost() { Reason::Unavailable } else { Reason::Overloaded }
    }
}

/// Waits until the deadline and no longer; `late` is the reason after it.
async fn within<T, E: Into<Denial<R>>, R>(
    deadline: Instant,
    step: impl Future<Output = Result<T, E>>,
    late: impl FnOnce() -> Reason,
) -> Result<T, Denial<R>> {
    match before(deadline, step).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(late().into()),
    }
}

/// Waits until the deadline. What memory answers at once is answered without a timer, whose queue all cores share.
async fn before<T>(deadline: Instant, step: impl Future<Output = T>) -> Result<T, Elapsed> {
    let mut step = std::pin::pin!(step);
    match futures_util::poll!(&mut step) {
        Poll::Ready(answer) => Ok(answer),
        Poll::Pending => tokio::time::timeout_at(deadline.into(), step).await,
    }
}

impl<R> From<StoreError> for Denial<R> {
    /// An outage is never an unknown key. What callers could bring about is no outage, which an operator may hand to
    /// Envoy's failure mode: too many look-ups, or one that panics.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Busy | StoreError::Locked(_) | StoreError::Abandoned(_) => Reason::Overloaded.into(),
            StoreError::Timeout(_) | StoreError::Unavailable(_) | StoreError::Unfit(_) => {
                Reason::Unavailable.into()
            }
        }
    }
}

impl<R> From<ProofError> for Denial<R> {
    /// Never [`Reason::Unavailable`], which an operator may hand to Envoy's failure mode: a flood of
    /// wrong keys must not be able to bring that about.
    fn from(error: ProofError) -> Self {
        match error {
            ProofError::Mismatch => Reason::InvalidCredential.into(),
            ProofError::TooManyAttempts(retry_after) => {
                Self { retry_after: Some(retry_after), ..Reason::TooManyAttempts.into() }
            }
            ProofError::Overloaded | ProofError::Abandoned | ProofError::Unhashed => {
                Reason::Overloaded.into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::Rejected;

    #[test]
    fn only_a_store_can_be_unavailable() {
        let too_many = ProofError::TooManyAttempts(std::time::Duration::ZERO);
        let others =
            [ProofError::Mismatch, ProofError::Overloaded, ProofError::Abandoned, ProofError::Unhashed];
        for error in others.into_iter().chain([too_many]) {
            assert_ne!(<Denial>::from(error).reason, Reason::Unavailable, "{error:?}");
        }
        assert_eq!(
            <Denial>::from(StoreError::Timeout(std::time::Duration::ZERO)).reason,
            Reason::Unavailable
        );
        assert_eq!(
            <Denial>::from(StoreError::from(Rejected::QueueFull)).reason,
            Reason::Overloaded,
            "a flood can fill it"
        );
    }
}
