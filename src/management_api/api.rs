//! What all requests share.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{
    access::{CallerId, Operation},
    attempts::Attempts,
};
use crate::{
    config::{AccountLock, ManagementClient, Mode, RateLimit},
    credential::generate::Brand,
    metrics::Metrics,
    store::Database,
};

/// What all requests share. Cheap to clone.
#[derive(Clone)]
pub(super) struct Api(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) database: Database,
    /// What certificates allow without a token.
    pub(super) clients: Vec<ManagementClient>,
    pub(super) brand: Brand,
    pub(super) cost: u32,
    /// How instances are configured, for explanations.
    pub(super) mode: Mode,
    pub(super) account_lock: AccountLock,
    pub(super) counted: RateLimit,
    /// Requests of each caller.
    pub(super) requests: Attempts<CallerId>,
    /// Failed authentications of each network.
    pub(super) failures: Attempts<IpAddr>,
    pub(super) uses: TokenUses,
    /// Requests with an idempotency key that are in progress.
    pub(super) in_progress: Mutex<HashSet<String>>,
    /// Limits bcrypt computations to the cores.
    pub(super) bcrypt: Semaphore,
    pub(super) metrics: Metrics,
}

/// When the use of each token was last recorded.
#[derive(Default)]
pub(super) struct TokenUses(Mutex<HashMap<i64, Instant>>);

/// Minimum time between two records of a token's use.
const USE_INTERVAL: Duration = Duration::from_secs(60);

impl Api {
    /// Counts an answer.
    pub(super) fn count(&self, operation: Option<Operation>, status: u16) {
        let class = match status {
            200..=299 => "2xx",
            400..=499 => "4xx",
            _ => "5xx",
        };
        let operation = operation.map_or("none", Operation::name);
        self.0.metrics.management_requests(operation, class).increment(1);
    }
}

impl TokenUses {
    /// Whether the use of this token is to be recorded now.
    pub(super) fn is_due(&self, token: i64, now: Instant) -> bool {
        let mut uses = self.0.lock();
        let is_due = uses.get(&token).is_none_or(|last| now.saturating_duration_since(*last) >= USE_INTERVAL);
        if is_due {
            uses.insert(token, now);
        }
        is_due
    }
}
