//! Writes what was used, a batch at a time, each of them once.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use metrics::Gauge;
use tracing::{debug, info, warn};

use super::{Batch, Usage};
use crate::{
    metrics::Metrics,
    store::{Database, StoreError, Written},
};

/// The one task that writes usage.
pub struct Writer {
    usage: Usage,
    database: Database,
    interval: Duration,
    /// A batch of which nobody knows whether it was written, and the transaction that would know.
    unsure: Option<(String, Batch)>,
    is_failing: bool,
    pending: Gauge,
}

/// How often it is told how much is pending, and tried again what could not be written.
const TICK: Duration = Duration::from_secs(1);

/// Keys that one statement is about.
const BATCH: usize = 500;

impl Writer {
    /// Writes what `usage` gathers to `database`, every `interval`.
    pub fn new(usage: Usage, database: Database, interval: Duration, metrics: &Metrics) -> Self {
        let pending = metrics.usage_pending();
        Self { usage, database, interval, unsure: None, is_failing: false, pending }
    }

    /// Writes until it is told to stop, never in the middle of a batch.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Self {
        let mut stop = std::pin::pin!(stop);
        let mut written = Instant::now();
        while tokio::time::timeout(TICK.min(self.interval.max(TICK / 100)), &mut stop).await.is_err() {
            if self.is_failing || written.elapsed() >= self.interval {
                written = Instant::now();
                self.write().await;
            }
            self.pending.set(self.pending() as f64);
        }
        self
    }

    /// Writes what is left, as long as it takes but no longer than this; says what was lost.
    pub async fn finish(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while !self.write().await && Instant::now() < deadline {
            tokio::time::sleep(TICK / 4).await;
        }
        match self.pending() {
            0 => debug!("all usage is written"),
            requests => warn!(requests, "the database did not take the usage of these requests"),
        }
    }

    fn pending(&self) -> u64 {
        let unsure = self.unsure.iter().flat_map(|(_, batch)| batch.values());
        self.usage.pending() + unsure.map(|used| used.requests).sum::<u64>()
    }

    /// Writes everything there is; whether it could.
    async fn write(&mut self) -> bool {
        if !self.is_sure().await {
            return false;
        }
        let mut rest = self.usage.take().into_iter().peekable();
        while rest.peek().is_some() {
            let batch: Batch = rest.by_ref().take(BATCH).collect();
            match self.database.write_usage(&batch).await {
                Written::Done => self.recover(),
                Written::NotDone(error) => {
                    self.fail(&error);
                    self.usage.put_back(batch.into_iter().chain(rest).collect());
                    return false;
                }
                Written::Unsure(transaction, error) => {
                    self.fail(&error);
                    self.unsure = Some((transaction, batch));
                    self.usage.put_back(rest.collect());
                    return false;
                }
            }
        }
        true
    }

    /// Finds out what became of a batch whose answer was lost.
    async fn is_sure(&mut self) -> bool {
        let Some((transaction, batch)) = self.unsure.take() else { return true };
        match self.database.was_written(&transaction).await {
            Ok(Some(true)) => true,
            Ok(Some(false)) => {
                self.usage.put_back(batch);
                true
            }
            // Another server, or one that was restored, knows nothing of this transaction, and never will.
            Err(StoreError::Unfit(_)) => {
                self.usage.lose(&batch);
                true
            }
            Ok(None) | Err(_) => {
                self.unsure = Some((transaction, batch));
                false
            }
        }
    }

    fn fail(&mut self, error: &StoreError) {
        if !std::mem::replace(&mut self.is_failing, true) {
            warn!(%error, "usage is not written at the moment; it is kept, and tried again");
        }
    }

    fn recover(&mut self) {
        if std::mem::replace(&mut self.is_failing, false) {
            info!("usage is written again");
        }
    }
}
