//! Writes usage in batches, each request once. A row that refuses its update loses only its own count.

use std::time::Duration;

use metrics::Gauge;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{
    Batch, KeyUsage, Usage,
    refusals::Refusals,
    store::{UsageStore, WriteError, WriteOutcome},
};
use crate::{
    dependencies::{Dependency, Reporter},
    metrics::Metrics,
    record::KeyId,
};

/// The one task that writes usage.
pub struct UsageWriter<S> {
    usage: Usage,
    store: S,
    interval: Duration,
    /// A batch whose outcome is unknown, and its transaction.
    unknown: Option<(String, Batch)>,
    /// Keys whose rows refused their usage. They are written alone, so that no other key waits for them.
    refusals: Refusals,
    /// Rows that were written since the start.
    rows_written: u64,
    is_failing: bool,
    /// Whether the last pass left rows that can be written now.
    is_behind: bool,
    pending: Gauge,
    reporter: Reporter,
}

/// Whether a later pass will write the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    Regular,
    /// The process ends.
    Last,
}

/// How often the pending count is exported, and failed writes are tried again.
const TICK: Duration = Duration::from_secs(1);

/// Keys in one statement.
const BATCH: usize = 500;

/// Maximum number of failed statements in one pass while batches are split. The rest waits for the next pass, so that
/// many rows that refuse do not overload the database.
const FAILURES: usize = 64;

impl<S: UsageStore> UsageWriter<S> {
    /// Writes the counts of `usage` to `store`, every `interval`.
    pub fn new(usage: Usage, store: S, interval: Duration, metrics: &Metrics) -> Self {
        Self {
            usage,
            store,
            interval,
            unknown: None,
            refusals: Refusals::default(),
            rows_written: 0,
            is_failing: false,
            is_behind: false,
            pending: metrics.usage_pending(),
            reporter: metrics.reporter(Dependency::Usage),
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

    /// Writes everything that is pending, within `timeout`, and logs what was lost.
    pub async fn finish(&mut self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while !self.write(Pass::Last).await && Instant::now() < deadline {
            tokio::time::sleep(TICK / 4).await;
        }
        match self.pending() {
            0 => debug!("all usage is written"),
            requests => warn!(
                requests,
                refused_keys = ?self.refusals.some_ids(),
                "the usage of these requests was not written"
            ),
        }
    }

    fn pending(&self) -> u64 {
        let unknown = self.unknown.iter().flat_map(|(_, batch)| batch.values());
        self.usage.pending() + unknown.map(|used| used.requests).sum::<u64>()
    }

    /// Writes everything that is pending. Returns whether nothing remains to be tried now.
    async fn write(&mut self, pass: Pass) -> bool {
        let is_done = self.write_all(pass).await;
        self.is_behind = !is_done;
        is_done
    }

    async fn write_all(&mut self, pass: Pass) -> bool {
        if !self.resolve_unknown().await {
            return false;
        }
        let mut batches = self.due(pass);
        let (mut failures, mut is_done) = (0, true);
        while let Some(batch) = batches.pop() {
            let error = match self.store.write_usage(&batch).await {
                WriteOutcome::Done => {
                    self.succeed(&batch);
                    continue;
                }
                WriteOutcome::Failed(error) => error,
                WriteOutcome::Unknown { transaction, error } => {
                    self.fail(&error);
                    self.unknown = Some((transaction, batch));
                    self.put_back(batches);
                    return false;
                }
            };
            // The same statement without rows shows whether the database or a row is the cause.
            if !matches!(self.store.write_usage(&Batch::new()).await, WriteOutcome::Done) {
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

    /// Takes the usage to try now, in batches. The last batch is tried first, so keys that refused come last.
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

    /// Keeps the count of a row that refused, or abandons it. Returns whether it needs no further try now.
    fn refuse(&mut self, key: KeyId, used: KeyUsage, error: &S::Error, pass: Pass) -> bool {
        let is_final = self.refusals.add(key, error, self.rows_written);
        // A lock, or a server that is out of space, passes. A refusal does not.
        if error.is_refusal() && (is_final || pass == Pass::Last) {
            self.usage.lose(&Batch::from([(key, used)]));
            if pass == Pass::Last {
                warn!(key_id = key.0, requests = used.requests, "usage is lost: the row refuses it");
            }
            return true;
        }
        self.usage.put_back(Batch::from([(key, used)]));
        pass == Pass::Regular
    }

    /// Finds out the outcome of a batch whose answer was lost. Returns whether it is known now.
    async fn resolve_unknown(&mut self) -> bool {
        let Some((transaction, batch)) = self.unknown.take() else { return true };
        match self.store.was_written(&transaction).await {
            Ok(Some(true)) => {
                self.succeed(&batch);
                true
            }
            Ok(Some(false)) => {
                self.usage.put_back(batch);
                true
            }
            // Another server, or one that was restored, will never know this transaction.
            Err(error) if error.is_refusal() => {
                self.usage.lose(&batch);
                true
            }
            Ok(None) | Err(_) => {
                self.unknown = Some((transaction, batch));
                false
            }
        }
    }

    fn fail(&mut self, error: &S::Error) {
        self.is_failing = true;
        self.reporter.fails(error.cause(), error.to_string());
    }

    fn succeed(&mut self, batch: &Batch) {
        self.is_failing = false;
        self.reporter.works();
        self.rows_written += batch.len() as u64;
        self.refusals.remove(batch.keys());
    }
}

/// The only row of a batch.
fn only(batch: &Batch) -> Option<(KeyId, KeyUsage)> {
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
