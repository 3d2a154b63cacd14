//! Facts about proofs, with real bcrypt at cost 4.

use std::time::Duration;

use parking_lot::Mutex;

use super::*;
use crate::{
    credential::CacheSecret,
    decision::Tier,
    record::{KeyId, fixtures},
};

/// Somebody without an address that Envoy vouches for, who waits for a minute.
fn caller(now: Timestamps) -> Caller {
    Caller { client: None, now, deadline: Instant::now() + Duration::from_secs(60) }
}

fn config() -> VerifierConfig {
    VerifierConfig {
        threads: 2,
        cost: BcryptCost::Fixed(4),
        failed_attempts: None,
        capacity: 100,
        proof_ttl: Duration::from_secs(3600),
        negative_ttl: Duration::from_secs(10),
    }
}

struct Bench {
    verifier: Verifier,
    metrics: Metrics,
}

impl Bench {
    fn new(config: VerifierConfig) -> Self {
        let metrics = Metrics::new().expect("builds");
        Self {
            verifier: Verifier::new(CacheSecrets::one(CacheSecret::random()), config, |_, _, _| (), &metrics),
            metrics,
        }
    }

    async fn prove(&self, text: &str, records: &[Arc<KeyRecord>]) -> Result<KeyId, ProofError> {
        self.prove_at(text, records, Instant::now()).await
    }

    async fn prove_at(
        &self,
        text: &str,
        records: &[Arc<KeyRecord>],
        now: Instant,
    ) -> Result<KeyId, ProofError> {
        let credential = Credential::parse(text.as_bytes()).expect("well-formed");
        let now = Timestamps { monotonic: now, ..Timestamps::now() };
        let found = Lookup::fresh(records, Tier::Database);
        self.verifier.prove(&credential, &found, &caller(now)).await.map(|record| record.id)
    }

    /// How many times bcrypt has run.
    fn computations(&self) -> usize {
        let text = self.metrics.render();
        let count =
            text.lines().find_map(|line| line.strip_prefix("keystile_bcrypt_duration_seconds_count "));
        count.map_or(0, |count| count.parse().expect("a number"))
    }
}

fn good() -> Vec<Arc<KeyRecord>> {
    vec![Arc::new(fixtures::record())]
}

fn other(id: i64, credential: &str) -> Arc<KeyRecord> {
    let hash = bcrypt::hash(credential, 4).expect("hashes").parse().expect("accepted");
    Arc::new(KeyRecord { id: KeyId(id), hash, ..fixtures::record() })
}

#[tokio::test]
async fn right_secret_is_proven_once() {
    let bench = Bench::new(config());
    for _ in 0..3 {
        assert_eq!(bench.prove(fixtures::CREDENTIAL, &good()).await, Ok(KeyId(7)));
    }
    assert_eq!(bench.computations(), 1);
}

#[tokio::test]
async fn proof_is_not_reached_with_less_than_the_whole_credential() {
    let bench = Bench::new(config());
    bench.prove(fixtures::CREDENTIAL, &good()).await.expect("proven");
    for end in 8..fixtures::CREDENTIAL.len() {
        let part = &fixtures::CREDENTIAL[..end];
        assert_eq!(bench.prove(part, &good()).await, Err(ProofError::Mismatch), "{part}");
    }
    let longer = format!("{}x", fixtures::CREDENTIAL);
    assert_eq!(bench.prove(&longer, &good()).await, Err(ProofError::Mismatch));
}

#[tokio::test]
async fn proof_does_not_outlive_its_ttl_or_its_hash() {
    let bench = Bench::new(config());
    let now = Instant::now();
    bench.prove_at(fixtures::CREDENTIAL, &good(), now).await.expect("proven");
    let late = now + config().proof_ttl;
    bench.prove_at(fixtures::CREDENTIAL, &good(), late).await.expect("proven");
    assert_eq!(bench.computations(), 2);
    let rehashed = [other(7, "ks_another secret, same id".replace([' ', ','], "").as_str())];
    assert_eq!(bench.prove_at(fixtures::CREDENTIAL, &rehashed, late).await, Err(ProofError::Mismatch));
}

#[tokio::test]
async fn wrong_secret_is_remembered_for_the_negative_ttl() {
    let bench = Bench::new(config());
    let now = Instant::now();
    for (seconds, computations) in [(0, 1), (9, 1), (10, 2)] {
        let wrong = bench.prove_at("ks_samplWrong", &good(), now + Duration::from_secs(seconds)).await;
        assert_eq!((wrong, bench.computations()), (Err(ProofError::Mismatch), computations));
    }
}

#[tokio::test]
async fn unknown_prefix_is_refused_in_the_time_of_a_wrong_secret_without_bcrypt_and_remembered_alike() {
    let bench = Bench::new(VerifierConfig { cost: BcryptCost::Fixed(8), ..config() });
    let begun = Instant::now();
    assert_eq!(bench.prove("zz_unknown", &[]).await, Err(ProofError::Mismatch));
    // No machine computes cost 8 faster.
    assert!(begun.elapsed() > Duration::from_millis(3), "{:?}", begun.elapsed());
    for _ in 0..2 {
        assert_eq!(bench.prove("zz_unknown", &[]).await, Err(ProofError::Mismatch));
    }
    assert_eq!((bench.computations(), bench.verifier.len()), (0, (0, 1)));
}

#[tokio::test]
async fn imitated_cost_is_the_highest_of_the_database_and_of_what_was_seen() {
    let bench = Bench::new(VerifierConfig { cost: BcryptCost::Auto, ..config() });
    let cost = || bench.verifier.0.cost.load(Ordering::Relaxed);
    assert_eq!(cost(), 12);
    bench.verifier.learn_cost(Some(5));
    assert_eq!(cost(), 5);
    let costly = bcrypt::hash("ks_samplCostly", 6).expect("hashes").parse().expect("accepted");
    let costly = Arc::new(KeyRecord { hash: costly, ..fixtures::record() });
    bench.prove("ks_samplCostly", &[costly]).await.expect("proven");
    assert_eq!(cost(), 6);
    bench.verifier.learn_cost(None);
    assert_eq!(cost(), 12);
    let fixed = Bench::new(config());
    fixed.verifier.learn_cost(Some(12));
    assert_eq!(fixed.verifier.0.cost.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn each_record_with_the_prefix_is_tried() {
    let bench = Bench::new(config());
    let records = [other(1, "ks_samplOne"), other(2, "ks_samplTwo"), good().remove(0)];
    assert_eq!(bench.prove("ks_samplTwo", &records).await, Ok(KeyId(2)));
    assert_eq!(bench.prove(fixtures::CREDENTIAL, &records).await, Ok(KeyId(7)));
    let computed = bench.computations();
    assert_eq!(bench.prove(fixtures::CREDENTIAL, &records).await, Ok(KeyId(7)));
    assert_eq!(bench.computations(), computed);
}

/// A caller that looked before the first computation ended, and began its own after that.
#[tokio::test]
async fn computation_that_ended_meanwhile_is_not_run_again() {
    let bench = Bench::new(config());
    let answers = [(fixtures::CREDENTIAL, Ok(0)), ("ks_samplWrong", Err(ProofError::Mismatch))];
    for (text, expected) in answers {
        let credential = Credential::parse(text.as_bytes()).expect("well formed");
        let (caller, record) = (caller(Timestamps::now()), good().remove(0));
        let mut attempt = Attempt {
            digest: credential.digest(bench.verifier.0.secrets.newest()),
            records: [None; MAX_RECORDS],
        };
        attempt.records[0] = Some((record.id, record.hash.tag()));
        let before = bench.computations();
        for _ in 0..2 {
            let inner = Arc::clone(&bench.verifier.0);
            let answer =
                inner.first_proof(attempt, credential.clone(), vec![record.hash.clone()], true, caller).await;
            assert_eq!((answer, bench.computations()), (expected, before + 1));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_callers_cost_one_computation() {
    let bench = Arc::new(Bench::new(config()));
    let callers: Vec<_> = (0..1000)
        .map(|_| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move { bench.prove(fixtures::CREDENTIAL, &good()).await })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.expect("no panic"), Ok(KeyId(7)));
    }
    assert_eq!(bench.computations(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queue_is_bounded_for_prefixes_that_exist_and_for_others() {
    for prefix in ["ks_sampl", "zz_other"] {
        let bench = Arc::new(Bench::new(VerifierConfig { cost: BcryptCost::Fixed(12), ..config() }));
        let callers: Vec<_> = (0..600)
            .map(|n| {
                let bench = Arc::clone(&bench);
                let records = if prefix == "ks_sampl" { good() } else { Vec::new() };
                tokio::spawn(async move { bench.prove(&format!("{prefix}{n}"), &records).await })
            })
            .collect();
        let mut overloaded = 0;
        for caller in callers {
            // Those that wait for more than a second wait still.
            let answer = tokio::time::timeout(Duration::from_secs(1) / 300, caller).await;
            let answer = answer.map(|answer| answer.expect("no panic").expect_err("unknown"));
            overloaded += usize::from(answer == Ok(ProofError::Overloaded));
        }
        assert!((190..=216).contains(&overloaded), "{prefix}: {overloaded} of 600, and 384 may wait");
    }
}

#[tokio::test]
async fn wrong_secrets_evict_no_proof() {
    let bench = Bench::new(VerifierConfig { capacity: 10, ..config() });
    bench.prove(fixtures::CREDENTIAL, &good()).await.expect("proven");
    for n in 0..200 {
        bench.prove(&format!("zz_wrong{n}"), &[]).await.expect_err("unknown");
    }
    let computed = bench.computations();
    bench.prove(fixtures::CREDENTIAL, &good()).await.expect("proven");
    assert_eq!(bench.computations(), computed);
}

#[tokio::test]
async fn key_of_seventy_two_bytes_is_proven_whole() {
    let bench = Bench::new(config());
    let key = "k".repeat(72);
    let record = [other(3, &key)];
    assert_eq!(bench.prove(&key, &record).await, Ok(KeyId(3)));
    let last_differs = format!("{}j", &key[..71]);
    assert_eq!(bench.prove(&last_differs, &record).await, Err(ProofError::Mismatch));
}

/// Two processes with these secrets, newest first, and what the first has proven of the sample's key.
async fn proven_by_another(ours: &[&[u8]], theirs: &[&[u8]]) -> (Bench, Lookup) {
    let secrets = |secrets: &[&[u8]]| {
        CacheSecrets::new(secrets.iter().map(|secret| CacheSecret::new(secret))).expect("some")
    };
    let metrics = Metrics::new().expect("builds");
    let shared = Arc::new(Mutex::new(Vec::new()));
    let share = {
        let shared = Arc::clone(&shared);
        move |credential: &Credential, proof_key, _| {
            shared.lock().push((credential.prefix(), proof_key));
        }
    };
    let another = Verifier::new(secrets(theirs), config(), share, &metrics);
    let credential = Credential::parse(fixtures::CREDENTIAL.as_bytes()).expect("well-formed");
    let found = Lookup::fresh(good(), Tier::Database);
    another.prove(&credential, &found, &caller(Timestamps::now())).await.expect("proven");
    let (prefix, proof_key) = shared.lock().pop().expect("shared");
    assert_eq!(prefix, credential.prefix());
    let hash =
        KeyHash::parse_redacted(&fixtures::record().hash.redacted(&CacheSecret::random())).expect("read");
    let record = Arc::new(KeyRecord { hash, ..fixtures::record() });
    let until = Timestamps::now().wall + Duration::from_secs(60);
    let found = Lookup {
        proofs: Arc::from([Proof { proof_key, until, ends: until }]),
        ..Lookup::fresh([record], Tier::Redis)
    };
    let metrics = Metrics::new().expect("builds");
    (Bench { verifier: Verifier::new(secrets(ours), config(), |_, _, _| (), &metrics), metrics }, found)
}

async fn recall(bench: &Bench, text: &str, found: &Lookup, now: Timestamps) -> Result<KeyId, ProofError> {
    let credential = Credential::parse(text.as_bytes()).expect("well-formed");
    bench.verifier.prove(&credential, found, &caller(now)).await.map(|record| record.id)
}

#[tokio::test]
async fn proof_of_another_process_counts_without_bcrypt_for_as_long_as_it_says() {
    let (bench, found) = proven_by_another(&[b"one"], &[b"one"]).await;
    let now = Timestamps::now();
    assert_eq!(recall(&bench, fixtures::CREDENTIAL, &found, now).await, Ok(KeyId(7)));
    assert_eq!(bench.computations(), 0);
    let later = |seconds| {
        let after = Duration::from_secs(seconds);
        Timestamps { wall: now.wall + after, monotonic: now.monotonic + after }
    };
    let without = Lookup { proofs: Arc::default(), ..found.clone() };
    assert_eq!(
        recall(&bench, fixtures::CREDENTIAL, &without, later(10)).await,
        Ok(KeyId(7)),
        "it is remembered"
    );
    assert_eq!(recall(&bench, fixtures::CREDENTIAL, &found, later(61)).await, Err(ProofError::Unhashed));
}

#[tokio::test]
async fn proof_of_another_process_is_of_its_credential_record_and_hash_alone() {
    let (bench, found) = proven_by_another(&[b"one"], &[b"one"]).await;
    let now = Timestamps::now();
    let wrong = format!("{}x", fixtures::CREDENTIAL);
    assert_eq!(recall(&bench, &wrong, &found, now).await, Err(ProofError::Unhashed));
    let other = |record: KeyRecord| Lookup { records: Arc::from([Arc::new(record)]), ..found.clone() };
    let record = (*found.records[0]).clone();
    let moved = other(KeyRecord { id: KeyId(8), ..record.clone() });
    assert_eq!(recall(&bench, fixtures::CREDENTIAL, &moved, now).await, Err(ProofError::Unhashed));
    let hash = KeyHash::parse_redacted(&format!("04:{}", "0".repeat(32))).expect("read");
    let rehashed = other(KeyRecord { hash, ..record });
    assert_eq!(recall(&bench, fixtures::CREDENTIAL, &rehashed, now).await, Err(ProofError::Unhashed));
}

#[tokio::test]
async fn proof_under_an_older_secret_counts_while_that_is_understood() {
    let (bench, found) = proven_by_another(&[b"new", b"old"], &[b"old"]).await;
    assert_eq!(recall(&bench, fixtures::CREDENTIAL, &found, Timestamps::now()).await, Ok(KeyId(7)));
    let (bench, found) = proven_by_another(&[b"new"], &[b"old"]).await;
    assert_eq!(
        recall(&bench, fixtures::CREDENTIAL, &found, Timestamps::now()).await,
        Err(ProofError::Unhashed)
    );
}

#[tokio::test]
async fn refused_secret_is_remembered_without_a_hash() {
    let (bench, found) = proven_by_another(&[b"one"], &[b"one"]).await;
    let wrong = format!("{}x", fixtures::CREDENTIAL);
    assert_eq!(bench.prove(&wrong, &good()).await, Err(ProofError::Mismatch));
    assert_eq!(recall(&bench, &wrong, &found, Timestamps::now()).await, Err(ProofError::Mismatch));
}

mod sha256;
