//! The five steps of a check. The modules that it calls contain the details.

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
    /// Creates an authorizer that uses the records of `store`, the proofs of `verifier` and the counts of `limiter`.
    pub fn new(store: S, verifier: Verifier, limiter: L) -> Self {
        Self { store, verifier, limiter }
    }

    /// Decides about one request that arrived `now`, before `deadline`.
    ///
    /// # Errors
    /// The [`Denial`], with the first reason that denies the request. The default is to deny: a request gets a
    /// [`Permit`] only by passing every step.
    pub async fn check<R: StoredRecord>(
        &self,
        attributes: &Attributes<'_>,
        now: Timestamps,
        deadline: Instant,
    ) -> Result<Permit<R>, Denial<R>>
    where
        S: KeyStore<R>,
    {
        // 0 route: a restriction that cannot be read must not be ignored.
        let route = attributes.route.as_ref().map_err(|_| Reason::RouteMisconfigured)?;
        // 1 credential: no I/O for text that cannot be a key.
        let credential = match &attributes.credential {
            // Also where a key is optional: that setting is about HTTP requests.
            Err(Reason::MissingCredential) if !attributes.is_http() => return Err(Reason::NotHttp.into()),
            Err(Reason::MissingCredential) if route.admits_anonymous() => return Ok(Permit::Anonymous),
            presented => presented.as_ref().map_err(|reason| *reason)?,
        };
        // 2 records: all records that the credential might belong to.
        let Ok(found) = before(deadline, self.store.records(credential.prefix(), now)).await else {
            self.store.report_late();
            return Err(self.late::<R>().into());
        };
        // 3 proof: the whole credential is proven before any other property of the key matters.
        let caller = Caller { client: attributes.vouched_client, now, deadline };
        let Ok(proven) = before(deadline, self.prove(credential, found?, &caller)).await else {
            self.verifier.report_late();
            return Err(self.late::<R>().into());
        };
        let proven = proven?;
        // 4 policy: the key's own policy, on every request.
        let facts = Facts { record: proven.record(), attributes, route, now: now.wall };
        if let Err(reason) = policy::check(&facts) {
            return Err(proven.deny(reason));
        }
        // 5 limits: last, so that a denied request is not charged.
        let record = proven.record();
        let charge = Charge { key: record.limit_id, limits: record.limits, cost: route.cost };
        self.charge(charge, proven, deadline).await.map(Permit::Key)
    }

    /// Charges by the limiter's clock and not by the time of arrival: a window may end during a first proof.
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
            Ok(Err(Refusal::Overloaded)) => Err(proven.deny(Reason::Overloaded)),
            Err(_) => {
                self.limiter.report_late();
                Err(proven.deny(Reason::Overloaded))
            }
        }
    }

    /// Proves the credential with the records found. If they have neither a hash nor a proof, reads the hash from the
    /// database.
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
        // In a separate future, so that a check of a proven key does not have the size of one that reads the hash.
        let with_hash = async {
            let found = self.store.hashed(credential.prefix(), caller.now).await?;
            let proof = self.verifier.prove(credential, &found, caller).await;
            Ok(found.proven(proof?))
        };
        Box::pin(with_hash).await
    }

    /// The reason for a check without an answer at its deadline. Many callers at once can make a check late. It is an
    /// outage only if the store no longer answers Keystile's own reads.
    fn late<R: StoredRecord>(&self) -> Reason
    where
        S: KeyStore<R>,
    {
        if self.store.is_lost() { Reason::Unavailable } else { Reason::Overloaded }
    }
}

/// Waits until the deadline. A step that memory answers at once needs no timer: all cores share the timer queue.
async fn before<T>(deadline: Instant, step: impl Future<Output = T>) -> Result<T, Elapsed> {
    let mut step = std::pin::pin!(step);
    match futures_util::poll!(&mut step) {
        Poll::Ready(answer) => Ok(answer),
        Poll::Pending => tokio::time::timeout_at(deadline.into(), step).await,
    }
}

impl<R> From<StoreError> for Denial<R> {
    /// An outage is never reported as an unknown key. A failure that callers can cause is not an outage, because an
    /// operator may leave outages to Envoy's failure mode. Such failures are too many lookups, and a lookup that
    /// panics.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Busy | StoreError::Locked(_) | StoreError::Abandoned(_) => Reason::Overloaded.into(),
            StoreError::Timeout(_)
            | StoreError::Unavailable(_)
            | StoreError::Paused(_)
            | StoreError::Unfit(_) => Reason::Unavailable.into(),
        }
    }
}

impl<R> From<ProofError> for Denial<R> {
    /// Never [`Reason::Unavailable`], which an operator may leave to Envoy's failure mode: a flood of wrong keys must
    /// not be able to cause it.
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
