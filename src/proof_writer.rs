//! Writes proofs to the database, so that a restart costs proven keys no bcrypt. No check waits for it.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    clock,
    config::DurableProofs,
    credential::{CacheSecrets, Credential},
    metrics::{DurableProofCounts, Metrics},
    proof::ProofKey,
    store::{Database, ProofSeals, StoreError, StoredProof},
};

/// Where new proofs are handed in.
pub struct ProofQueue {
    covered: DurableProofs,
    seals: ProofSeals,
    queue: mpsc::Sender<StoredProof>,
    counts: DurableProofCounts,
}

/// The one task that writes them, and deletes those that are over.
pub struct ProofWriter {
    queue: mpsc::Receiver<StoredProof>,
    /// What is written next. It stays here while the database does not answer.
    batch: Vec<StoredProof>,
    database: Database,
    counts: DurableProofCounts,
    /// What failed last, until something is written again.
    failure: Option<Failure>,
    prune_at: Instant,
    prune_fails: bool,
}

struct Failure {
    retry_at: Instant,
    /// Whether the database has no such table, or does not allow it.
    is_refusal: bool,
}

/// Proofs that wait for the database at most; beyond that they are lost, which costs bcrypt after a restart.
const CAPACITY: usize = 8192;

/// Proofs in one statement.
const BATCH: usize = 500;

/// How often new proofs are written.
const TICK: Duration = Duration::from_millis(250);

/// How long a write or a deletion may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// The pause after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// The pause after a refusal. Then the tables are looked at again: `keystile migrate` may have run since.
const RETRY_REFUSED: Duration = Duration::from_secs(30);

/// How often proofs that are over are deleted. The first time is earlier, for processes that do not live long.
const PRUNE: Duration = Duration::from_secs(60 * 60);
const FIRST_PRUNE: Duration = Duration::from_secs(60);

/// A queue for the proofs of these keys, sealed under the newest of `secrets`, and what writes them.
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
        // Not all instances at once.
        prune_at: Instant::now() + FIRST_PRUNE.mul_f64(1.0 + rand::random::<f64>()),
        prune_fails: false,
    };
    (ProofQueue { covered, seals: ProofSeals::new(secrets), queue: sender, counts }, writer)
}

impl ProofQueue {
    /// Has a proof stored, if its key is one of those that are. `proven_at` is the time of the bcrypt run.
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
    /// Writes until `stop` resolves, never in the middle of a batch.
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

    /// Writes what is left, within `patience`.
    pub async fn finish(mut self, patience: Duration) {
        self.failure = self.failure.filter(|failure| failure.is_refusal);
        let written = timeout(patience, self.write()).await;
        let left = self.batch.len() + self.queue.len();
        if written.is_err() || left > 0 {
            warn!(proofs = left, "not stored: the next start costs these keys bcrypt");
        }
    }

    /// Writes all that is waiting, as far as the database takes it.
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

    /// Whether the last failure is long enough ago. What is refused is not kept meanwhile.
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
        if self.failure.take().is_some() {
            info!("proofs are stored again");
        }
    }

    fn fail(&mut self, error: &StoreError) {
        if self.failure.is_none() {
            warn!(%error, "proofs are not stored at the moment: a restart costs their keys bcrypt");
        }
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
                debug!("proofs that are over are deleted");
            }
            Err(error) if !std::mem::replace(&mut self.prune_fails, true) => {
                warn!(%error, "proofs that are over are not deleted: the table grows");
            }
            Err(_) => {}
        }
    }
}
