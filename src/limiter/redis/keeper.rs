//! Keeps a sidecar in touch with Redis: it says that it is there, settles, and in the end takes its leave.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{Inner, Missed, Shared, link::Found, script::Beat};
use crate::{clock, config::RateLimitCharge, limiter::lease::Settle, record::KeyId};

/// How often a sidecar says that it is there, and settles.
const BEAT: Duration = Duration::from_secs(1);

/// Settlements under way.
const SETTLEMENTS: usize = 64;

/// How long leaving may take.
const PARTING: Duration = Duration::from_secs(1);

impl Shared {
    /// Keeps in touch with Redis: says that this sidecar is there, gives back what is not needed, and after
    /// an outage tells what was used.
    pub async fn keep(self) {
        let mut tick = interval(BEAT);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.beat().await;
        }
    }

    /// Gives back all shares and says goodbye.
    pub async fn leave(&self) {
        let parting = async {
            self.settle(Settle::Leaving).await;
            self.0.scripts.leave().await
        };
        // Whoever says nothing is forgotten a little later.
        let _ = timeout(PARTING, parting).await;
    }

    async fn beat(&self) {
        let inner = &self.0;
        let Ok(beat) = inner.notice(inner.scripts.beat().await) else { return };
        let Beat { now, is_new, fleet, awake } = beat;
        inner.clock.set(now, clock::monotonic());
        let found = match inner.others.fleet() {
            // Nothing was let through that Redis would have to be told.
            None => inner.link.find(Found::First, clock::monotonic()),
            Some(_) if is_new => inner.link.find(Found::Forgetful, clock::monotonic()),
            Some(_) => inner.link.find(Found::Again, clock::monotonic()),
        };
        if found {
            inner.resync.store(true, Ordering::Relaxed);
        } else if inner.others.fleet().is_some_and(|before| awake < before.count) {
            // Who is not back yet goes on with its part, of which Redis knows nothing.
            inner.link.settle_on(clock::monotonic());
        }
        // A Redis that starts anew hears of the sidecars one by one. Until it has, their number is as it was.
        if inner.link.is_up(clock::monotonic()) {
            inner.others.set(fleet);
        }
        self.settle_beside();
    }

    /// Settles while the beats go on: with very many keys it takes longer than Redis remembers who is silent.
    fn settle_beside(&self) {
        let Ok(turn) = Arc::clone(&self.0.settling).try_lock_owned() else { return };
        let shared = self.clone();
        tokio::spawn(async move {
            let _turn = turn;
            let resync = &shared.0.resync;
            let all = resync.swap(false, Ordering::Relaxed);
            if !shared.settle(if all { Settle::All } else { Settle::Open }).await && all {
                resync.store(true, Ordering::Relaxed);
            }
        });
    }

    /// Settles every key that has something to settle; whether that went well.
    async fn settle(&self, what: Settle) -> bool {
        let (inner, now, mut keys) = (&self.0, clock::monotonic(), Vec::new());
        let redis_now = inner.clock.now(now);
        inner.keys.retain(|key, slot| {
            keys.extend(slot.settlement(key, now, what).map(|_| key));
            !slot.is_over(redis_now)
        });
        let settled = stream::iter(keys).map(|key| async move {
            let inner = Arc::clone(inner);
            let settled = inner.singleflight.join(key, || Arc::clone(&inner).settle(key, what)).await;
            settled == Ok(Ok(()))
        });
        settled.buffer_unordered(SETTLEMENTS).all(std::future::ready).await
    }
}

impl Inner {
    async fn settle(self: Arc<Self>, key: KeyId, what: Settle) -> Result<(), Missed> {
        let order = self.keys.with(key, |slot| slot.settlement(key, clock::monotonic(), what));
        let Some(order) = order else { return Ok(()) };
        let reply = self.send(&order).await?;
        self.keys.with(key, |slot| match self.config.charge {
            RateLimitCharge::Leased => slot.learn_settled(&order, &reply),
            // Checks are charged meanwhile: what is not known of is of them.
            RateLimitCharge::Exact => slot.learn(&order, &reply),
        });
        Ok(())
    }
}
