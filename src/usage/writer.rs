//! Writes usage, a batch at a time, each request once. A row that refuses costs its own count alone.

use std::time::Duration;

use metrics::Gauge;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{Batch, Usage, Used, refusals::Refusals};
use crate::{
    metrics::Metrics,
    record::KeyId,
    store::{StoreError, UsageStore, Written},
};

/// The one task that writes usage.
pub struct Writer<S> {
    usage: Usage,
    store: S,
    interval: Duration,
    /// A batch of which nobody knows whether it was written, and the transaction that would know.
    unsure: Option<(String, Batch)>,
    /// Keys whose rows refused their count. They are written alone, so that no other key waits for them.
    refusals: Refusals,
    /// Rows that were written since the start.
    rows_written: u64,
    is_failing: bool,
    /// Whether the last pass left rows that can be written now.
    is_behind: bool,
    pending: Gauge,
}

/// Whether there is a later pass for what is not written now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    Regular,
    /// The process ends.
    Last,
}

/// How often the pending count is exported, and what could not be written is tried again.
const TICK: Duration = Duration::from_secs(1);

/// Keys in one statement.
const BATCH: usize = 500;

/// Statements that may fail in one pass while batches are split. The rest waits for the next pass, so that many
/// rows that refuse do not keep the database busy.
const FAILURES: usize = 64;

impl<S: UsageStore> Writer<S> {
    /// Writes what `usage` gathers to `store`, every `interval`.
    pub fn new(usage: Usage, store: S, interval: Duration, metrics: &Metrics) -> Self {
        Self {
            usage,
            store,
            interval,
            unsure: None,
            refusals: Refusals::default(),
            rows_written: 0,
            is_failing: false,
            is_behind: false,
            pending: metrics.usage_pending(),
        }
    }

    /// Writes until `stop` resolves, never in the middle of a batch.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Self {
        let mut stop = std::pin::pin!(stop);
        let mut written = Instant::now();
        while tokio::time::timeout(TICK.min(self.interval.max(TICK / 100)), &mut stop).await.is_err() {
            if self.is_failing || self.is_behind || written.elapsed() >= self.interval {
                written = Instant::now();
                self.write(Pass::Regular).await;
            }
            self.pending.set(self.pending() as f64);
        }
        self
    }

    /// Writes everything that is pending, within `patience`, and logs what was lost.
    pub async fn finish(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while !self.write(Pass::Last).await && Instant::now() < deadline {
            tokio::time::sleep(TICK / 4).await;
        }
        match self.pending() {
            0 => debug!("all usage is written"),
            requests => warn!(
                requests,
                refused_keys = ?self.refusals.some_ids(),
                "the database did not take the usage of these requests"
            ),
        }
    }

    fn pending(&self) -> u64 {
        let unsure = self.unsure.iter().flat_map(|(_, batch)| batch.values());
        self.usage.pending() + unsure.map(|used| used.requests).sum::<u64>()
    }

    /// Writes everything that is pending, and returns whether nothing is left to try now.
    async fn write(&mut self, pass: Pass) -> bool {
        let is_done = self.write_all(pass).await;
        self.is_behind = !is_done;
        is_done
    }

    async fn write_all(&mut self, pass: Pass) -> bool {
        if !self.is_sure().await {
            return false;
        }
        let mut batches = self.due(pass);
        let (mut failures, mut is_done) = (0, true);
        while let Some(batch) = batches.pop() {
            let error = match self.store.write_usage(&batch).await {
                Written::Done => {
                    self.succeed(&batch);
                    continue;
                }
                Written::NotDone(error) => error,
                Written::Unsure(transaction, error) => {
                    self.fail(&error);
                    self.unsure = Some((transaction, batch));
                    self.put_back(batches);
                    return false;
                }
            };
            // The same statement without rows tells whose fault it is: the database's, or that of a row.
            if !matches!(self.store.write_usage(&Batch::new()).await, Written::Done) {
                self.fail(&error);
                self.put_back(batches.into_iter().chain([batch]));
                return false;
            }
            match only(&batch) {
                Some((key, used)) => is_done &= self.refuse(key, used, &error, pass),
                None => batches.extend(halves(batch)),
            }
            failures += 1;
            if failures == FAILURES {
                is_done &= batches.is_empty();
                self.put_back(batches);
                return is_done;
            }
        }
        is_done
    }

    /// Takes out what is to be tried now, in batches. The last one is tried first: keys that refused come last.
    fn due(&mut self, pass: Pass) -> Vec<Batch> {
        let (mut refused, mut later, mut rest) = (Vec::new(), Batch::new(), Vec::new());
        let now = Instant::now();
        for (key, used) in self.usage.take() {
            match self.refusals.retry_at(key) {
                None => rest.push((key, used)),
                Some(at) if at <= now || pass == Pass::Last => refused.push(Batch::from([(key, used)])),
                Some(_) => drop(later.insert(key, used)),
            }
        }
        self.usage.put_back(later);
        refused.extend(rest.chunks(BATCH).map(|rows| rows.iter().copied().collect()));
        refused
    }

    fn put_back(&self, batches: impl IntoIterator<Item = Batch>) {
        batches.into_iter().for_each(|batch| self.usage.put_back(batch));
    }

    /// Keeps the count of a row that refused, or gives it up; returns whether this needs no further try now.
    fn refuse(&mut self, key: KeyId, used: Used, error: &StoreError, pass: Pass) -> bool {
        let is_final = self.refusals.add(key, error, self.rows_written);
        // A lock, or a server that is out of space, passes. What the database refuses, it refuses again.
        let is_refusal = matches!(error, StoreError::Unfit(_));
        if is_refusal && (is_final || pass == Pass::Last) {
            self.usage.lose(&Batch::from([(key, used)]));
            if pass == Pass::Last {
                warn!(key_id = key.0, requests = used.requests, "usage is lost: the row refuses it");
            }
            return true;
        }
        self.usage.put_back(Batch::from([(key, used)]));
        pass == Pass::Regular
    }

    /// Finds out what became of a batch whose answer was lost.
    async fn is_sure(&mut self) -> bool {
        let Some((transaction, batch)) = self.unsure.take() else { return true };
        match self.store.was_written(&transaction).await {
            Ok(Some(true)) => {
                self.succeed(&batch);
                true
            }
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

    fn succeed(&mut self, batch: &Batch) {
        if std::mem::replace(&mut self.is_failing, false) {
            info!("usage is written again");
        }
        self.rows_written += batch.len() as u64;
        self.refusals.remove(batch.keys());
    }
}

/// The row of a batch that has no other.
fn only(batch: &Batch) -> Option<(KeyId, Used)> {
    let mut rows = batch.iter();
    match (rows.next(), rows.next()) {
        (Some((key, used)), None) => Some((*key, *used)),
        _ => None,
    }
}

fn halves(batch: Batch) -> [Batch; 2] {
    let half = batch.len() / 2;
    let mut rows = batch.into_iter();
    [rows.by_ref().take(half).collect(), rows.collect()]
}

#[cfg(test)]
mod tests;
