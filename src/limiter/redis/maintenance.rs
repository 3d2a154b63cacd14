//! Background work of the limiter in Redis: heartbeats, reconciliation, and the farewell at a shutdown.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{Inner, NoReply, RedisLimiter, lease::Reconcile};
use crate::{clock, config::RateLimitCharge, record::KeyId};

/// Interval of heartbeats and reconciliations.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Maximum number of keys that are reconciled at the same time.
const CONCURRENCY: usize = 64;

/// Deadline of the farewell.
const FAREWELL: Duration = Duration::from_secs(1);

impl RedisLimiter {
    /// Sends heartbeats, returns leases that are not needed, and after an outage reports all use. Runs until it is
    /// dropped.
    pub async fn maintain(self) {
        let mut tick = interval(HEARTBEAT);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if self.0.heartbeat().await {
                self.reconcile_in_background();
            }
        }
    }

    /// Returns all leases and leaves the other instances.
    pub async fn leave(&self) {
        let farewell = async {
            self.reconcile(Reconcile::Leaving).await;
            self.0.scripts.leave().await
        };
        // Without a farewell, the others notice a little later.
        let _ = timeout(FAREWELL, farewell).await;
    }

    /// Reconciles while heartbeats continue: with very many keys it takes longer than the silence after which an
    /// instance counts as gone.
    fn reconcile_in_background(&self) {
        let Ok(turn) = Arc::clone(&self.0.reconciling).try_lock_owned() else { return };
        let limiter = self.clone();
        tokio::spawn(async move {
            let _turn = turn;
            let needs_full_report = &limiter.0.needs_full_report;
            let full = needs_full_report.swap(false, Ordering::Relaxed);
            let what = if full { Reconcile::All } else { Reconcile::Open };
            if !limiter.reconcile(what).await && full {
                needs_full_report.store(true, Ordering::Relaxed);
            }
        });
    }

    /// Reconciles every key that needs it. Returns whether all succeeded.
    async fn reconcile(&self, what: Reconcile) -> bool {
        let (inner, now, mut keys) = (&self.0, clock::monotonic(), Vec::new());
        let redis_now = inner.clock.now(now);
        inner.keys.retain(|key, state| {
            keys.extend(state.reconciliation(key, now, what).map(|_| key));
            !state.has_ended(redis_now)
        });
        let reconciled = stream::iter(keys).map(|key| async move {
            let inner = Arc::clone(inner);
            let reconciled = inner.singleflight.join(key, || Arc::clone(&inner).reconcile(key, what)).await;
            reconciled == Ok(Ok(()))
        });
        reconciled.buffer_unordered(CONCURRENCY).all(std::future::ready).await
    }
}

impl Inner {
    async fn reconcile(self: Arc<Self>, key: KeyId, what: Reconcile) -> Result<(), NoReply> {
        let request = self.keys.with(key, |state| state.reconciliation(key, clock::monotonic(), what));
        let Some(request) = request else { return Ok(()) };
        let reply = self.send(&request).await?;
        self.keys.with(key, |state| match self.config.charge {
            RateLimitCharge::Leased => state.apply_reconciliation(&request, &reply),
            // Checks are charged at the same time. Use that this instance does not know yet is theirs.
            RateLimitCharge::Exact => state.apply(&request, &reply),
        });
        Ok(())
    }
}
