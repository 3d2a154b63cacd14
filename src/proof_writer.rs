//! Writes proofs to the database, so that proven keys need no bcrypt after a restart. No check waits for a write.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tracing::{debug, warn};

use crate::{
    clock,
    config::DurableProofs,
    credential::{CacheSecrets, Credential},
    dependencies::{Dependency, Reporter},
    metrics::{DurableProofCounts, Metrics},
    proof::ProofKey,
    resilience::CallError,
    store::{Database, ProofSeals, StoreError, StoredProof},
};

/// The queue of new proofs that are to be stored.
pub struct ProofQueue {
    covered: DurableProofs,
    seals: ProofSeals,
    queue: mpsc::Sender<StoredProof>,
    counts: DurableProofCounts,
}

/// The only task that writes proofs. It also deletes expired proofs.
pub struct ProofWriter {
    queue: mpsc::Receiver<StoredProof>,
    /// The next proofs to write. They stay here while the database does not answer.
    batch: Vec<StoredProof>,
    database: Database,
    counts: DurableProofCounts,
    /// The last failure, until a write succeeds.
    failure: Option<Failure>,
    prune_at: Instant,
    prune_fails: bool,
    reporter: Reporter,
}

struct Failure {
    retry_at: Instant,
    /// Whether the table does not exist or the database denies access.
    is_refusal: bool,
}

/// Maximum number of proofs in the queue. Further proofs are dropped, and their keys need bcrypt after a restart.
const CAPACITY: usize = 8192;

/// Maximum number of proofs in one statement.
const BATCH: usize = 500;

/// Time between two writes.
const TICK: Duration = Duration::from_millis(250);

/// Maximum duration of a write or a deletion.
const DEADLINE: Duration = Duration::from_secs(5);

/// The pause after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// The pause after a refusal. Then the tables are inspected again: `keystile migrate` may have run since.
const RETRY_REFUSED: Duration = Duration::from_secs(30);

/// Time between two deletions of expired proofs. The first deletion is earlier, for processes with a short life.
const PRUNE: Duration = Duration::from_secs(60 * 60);
const FIRST_PRUNE: Duration = Duration::from_secs(60);

/// Creates a queue for the proofs of the `covered` keys, sealed under the newest of `secrets`, and its writer.
pub fn proof_writer(
    covered: DurableProofs,
    secrets: CacheSecrets,
    database: Database,
    metrics: &Metrics,
) -> (ProofQueue, ProofWriter) {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    let counts = metrics.durable_proofs();
    let writer = ProofWriter {
        queue: receiver,
        batch: Vec::new(),
        database,
        counts: counts.clone(),
        failure: None,
        // Random, so that not all instances delete at the same time.
        prune_at: Instant::now() + FIRST_PRUNE.mul_f64(1.0 + rand::random::<f64>()),
        prune_fails: false,
        reporter: metrics.reporter(Dependency::Proofs),
    };
    (ProofQueue { covered, seals: ProofSeals::new(secrets), queue: sender, counts }, writer)
}

impl ProofQueue {
    /// Adds a proof to the queue, if the proofs of its key are stored. `proven_at` is the time of the bcrypt run.
    pub fn put(&self, credential: &Credential, proof_key: &ProofKey, proven_at: OffsetDateTime) {
        if !self.covered.covers(credential) {
            return;
        }
        let Some(proof) = self.seals.seal(proof_key, proven_at) else { return };
        if self.queue.try_send(proof).is_err() {
            self.counts.lost.increment(1);
        }
    }
}

impl ProofWriter {
    /// Writes until `stop` resolves. It does not stop in the middle of a batch.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Self {
        let mut stop = std::pin::pin!(stop);
        while timeout(TICK, &mut stop).await.is_err() {
            self.write().await;
            if Instant::now() >= self.prune_at {
                self.prune_at = Instant::now() + PRUNE;
                self.prune().await;
            }
        }
        self
    }

    /// Writes the remaining proofs within `patience`.
    pub async fn finish(mut self, patience: Duration) {
        self.failure = self.failure.filter(|failure| failure.is_refusal);
        let written = timeout(patience, self.write()).await;
        let left = self.batch.len() + self.queue.len();
        if written.is_err() || left > 0 {
            warn!(proofs = left, "proofs not stored: their keys need bcrypt after the next start");
        }
    }

    /// Writes the waiting proofs until none is left, a write fails, or the pause after a failure has not ended.
    async fn write(&mut self) {
        loop {
            while self.batch.len() < BATCH
                && let Ok(proof) = self.queue.try_recv()
            {
                self.batch.push(proof);
            }
            if self.batch.is_empty() || !self.may_try() {
                return;
            }
            let write = timeout(DEADLINE, self.database.write_proofs(&self.batch));
            match write.await.unwrap_or(Err(StoreError::Timeout(DEADLINE))) {
                Ok(()) => self.succeed(),
                Err(error) => return self.fail(&error),
            }
        }
    }

    /// Whether the pause after the last failure has ended. During the pause after a refusal, proofs are dropped.
    fn may_try(&mut self) -> bool {
        let Some(Failure { retry_at, is_refusal }) = self.failure else { return true };
        if Instant::now() < retry_at {
            if is_refusal {
                self.lose();
            }
            return false;
        }
        if is_refusal {
            self.database.forget_tables();
        }
        true
    }

    fn succeed(&mut self) {
        self.counts.written.increment(self.batch.len() as u64);
        self.batch.clear();
        self.failure = None;
        self.reporter.works();
    }

    fn fail(&mut self, error: &StoreError) {
        self.reporter.fails(error.cause(), error.problem());
        let is_refusal = matches!(error, StoreError::Unfit(_));
        let pause = if is_refusal { RETRY_REFUSED } else { RETRY };
        self.failure = Some(Failure { retry_at: Instant::now() + pause, is_refusal });
        if is_refusal {
            self.lose();
        }
    }

    fn lose(&mut self) {
        self.counts.lost.increment(self.batch.len() as u64);
        self.batch.clear();
    }

    async fn prune(&mut self) {
        let prune = timeout(DEADLINE, self.database.prune_proofs(clock::wall()));
        match prune.await.unwrap_or(Err(StoreError::Timeout(DEADLINE))) {
            Ok(()) => {
                self.prune_fails = false;
                debug!("expired proofs are deleted");
            }
            Err(error) if !std::mem::replace(&mut self.prune_fails, true) => {
                warn!(%error, "expired proofs are not deleted: the table grows");
            }
            Err(_) => {}
        }
    }
}
