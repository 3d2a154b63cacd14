//! How often a key may be used: one trait, and those who count.
//!
//! [`Local`] counts for this process alone; [`Shared`] lets Redis count for every sidecar, and goes
//! on with a part of each limit while Redis does not answer.

use std::future::Future;

use crate::{
    clock::Timestamps,
    limits::{Bill, Standing},
};

mod counts;
mod lease;
mod local;
mod redis;
mod shards;

pub use local::Local;
pub use redis::{Shared, SharedConfig};

/// Charges requests against the limits of their keys.
pub trait RateLimiter: Send + Sync + 'static {
    /// Whether anything is counted here at all.
    fn counts(&self) -> bool {
        true
    }

    /// Charges all windows of the key that have a limit, or none of them.
    ///
    /// `None` is an answer: nothing is counted here.
    fn charge(
        &self,
        bill: Bill,
        now: Timestamps,
    ) -> impl Future<Output = Result<Option<Standing>, Refusal>> + Send;
}

/// Why a request was not charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A window has not enough left.
    Limited(Standing),
    /// Nobody counts at the moment, and the operator wants no guesses.
    Unavailable,
    /// More requests wait to be counted than can be.
    Overloaded,
}

/// Who counts, as the operator chose. Cheap to clone.
#[derive(Clone)]
pub enum Limiter {
    /// Nobody: limits are told to the upstream, and are its to enforce.
    Off,
    /// This process.
    Local(Local),
    /// Redis.
    Shared(Shared),
}

impl Limiter {
    /// What has to be done beside the counting, for as long as it lasts.
    pub async fn keep(self) {
        match self {
            Self::Off => {}
            Self::Local(local) => local.keep().await,
            Self::Shared(shared) => shared.keep().await,
        }
    }

    /// Ends in order.
    pub async fn leave(&self) {
        if let Self::Shared(shared) = self {
            shared.leave().await;
        }
    }
}

impl RateLimiter for Limiter {
    fn counts(&self) -> bool {
        !matches!(self, Self::Off)
    }

    async fn charge(&self, bill: Bill, now: Timestamps) -> Result<Option<Standing>, Refusal> {
        match self {
            Self::Off => Ok(None),
            Self::Local(local) => local.charge(bill, now).await,
            Self::Shared(shared) => Box::pin(shared.charge(bill, now)).await,
        }
    }
}
