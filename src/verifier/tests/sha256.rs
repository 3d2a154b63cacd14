//! Facts about SHA-256 hashes: a right secret needs no bcrypt, and a wrong one tells nothing.

use super::*;

const CREDENTIAL: &str = "ks_sampl-a-random-key-of-another-issuer";

fn hash(credential: &str) -> Sha256Hash {
    Sha256Hash::of(&Credential::parse(credential.as_bytes()).expect("well-formed"))
}

fn key(id: i64, credential: &str) -> Arc<KeyRecord> {
    Arc::new(KeyRecord { id: KeyId(id), hash: hash(credential).into(), ..fixtures::record() })
}

impl Bench {
    /// What was counted: attempts by outcome, and computations.
    fn counts(&self) -> Vec<String> {
        let text = self.metrics.render();
        let counted =
            |line: &&str| line.starts_with("keystile_first_proofs_total") || line.contains("bcrypt");
        let mut counts: Vec<_> = text.lines().filter(counted).map(str::to_owned).collect();
        counts.sort();
        counts
    }
}

#[tokio::test]
async fn right_secret_is_proven_without_bcrypt_and_shared_with_nobody() {
    let metrics = Metrics::new().expect("builds");
    let shared = Arc::new(Mutex::new(0));
    let share = {
        let shared = Arc::clone(&shared);
        move |_: &Credential, _, _| *shared.lock() += 1
    };
    let verifier = Verifier::new(CacheSecrets::one(CacheSecret::random()), config(), share, &metrics);
    let bench = Bench { verifier, metrics };
    let records = [key(1, CREDENTIAL)];
    let (now, ttl) = (Instant::now(), config().proof_ttl);
    // Used at every tenth of its lifetime, and beyond it.
    for tenth in 0..25 {
        assert_eq!(bench.prove_at(CREDENTIAL, &records, now + ttl * tenth / 10).await, Ok(KeyId(1)));
    }
    assert_eq!((bench.computations(), *shared.lock(), bench.verifier.len()), (0, 0, (1, 0)));
    assert!(
        bench.counts().iter().any(|line| line.contains("proven") && line.ends_with(" 3")),
        "once a lifetime"
    );
}

#[tokio::test]
async fn proof_is_of_the_whole_credential_and_this_hash() {
    let bench = Bench::new(config());
    let records = [key(1, CREDENTIAL)];
    bench.prove(CREDENTIAL, &records).await.expect("proven");
    for wrong in [&CREDENTIAL[..8], &CREDENTIAL[..CREDENTIAL.len() - 1], &format!("{CREDENTIAL}x")] {
        assert_eq!(bench.prove(wrong, &records).await, Err(ProofError::Mismatch), "{wrong}");
    }
    assert_eq!(bench.prove(CREDENTIAL, &[key(1, "ks_sampl-rehashed")]).await, Err(ProofError::Mismatch));
    assert_eq!(bench.computations(), 0);
}

/// The same attempts, once with a prefix that has such a hash and once with one that nobody has: the same is counted and
/// cached, and nothing is computed.
#[tokio::test]
async fn wrong_secret_costs_and_counts_what_an_unknown_prefix_does() {
    let of = |records: Vec<Arc<KeyRecord>>| async move {
        let bench = Bench::new(VerifierConfig { cost: BcryptCost::Fixed(8), ..config() });
        let begun = Instant::now();
        for attempt in ["ks_samplWrong", "ks_samplWorse", "ks_samplWrong"] {
            assert_eq!(bench.prove(attempt, &records).await, Err(ProofError::Mismatch));
        }
        // Two turns, and no machine computes cost 8 faster.
        assert!(begun.elapsed() > Duration::from_millis(6), "{:?}", begun.elapsed());
        (bench.counts(), bench.verifier.len())
    };
    let with_hash = of(vec![key(1, CREDENTIAL)]).await;
    assert_eq!(with_hash, of(Vec::new()).await);
    assert!(
        with_hash.0.iter().any(|line| line.contains("mismatch") && line.ends_with(" 2")),
        "{with_hash:?}"
    );
}

#[tokio::test]
async fn records_of_both_kinds_with_one_prefix_are_all_tried() {
    let bench = Bench::new(config());
    let records =
        [key(1, "ks_samplOne"), other(2, "ks_samplTwo"), key(3, "ks_samplThree"), other(4, "ks_samplFour")];
    for (text, id) in [("ks_samplThree", 3), ("ks_samplOne", 1)] {
        assert_eq!(bench.prove(text, &records).await, Ok(KeyId(id)));
    }
    assert_eq!(bench.computations(), 0, "the others are not needed");
    for (text, id) in [("ks_samplTwo", 2), ("ks_samplFour", 4)] {
        assert_eq!(bench.prove(text, &records).await, Ok(KeyId(id)));
    }
    assert_eq!(bench.prove("ks_samplFive", &records).await, Err(ProofError::Mismatch));
    assert_eq!(bench.computations(), 3);
}

#[tokio::test]
async fn imitated_cost_is_that_of_bcrypt_alone() {
    let bench = Bench::new(VerifierConfig { cost: BcryptCost::Auto, ..config() });
    bench.verifier.learn_cost(Some(5));
    let records = [key(1, CREDENTIAL), other(2, "ks_samplTwo")];
    bench.prove(CREDENTIAL, &records).await.expect("proven");
    bench.prove("ks_samplWrong", &records).await.expect_err("wrong");
    assert_eq!(bench.verifier.0.cost.load(Ordering::Relaxed), 5);
}

#[tokio::test]
async fn hash_from_redis_proves_under_a_known_cache_secret_alone() {
    let (secret, older) = (CacheSecret::new(b"newest"), CacheSecret::new(b"older"));
    for (sealed_with, expected) in [
        (&secret, Ok(KeyId(1))),
        (&older, Ok(KeyId(1))),
        (&CacheSecret::new(b"unknown"), Err(ProofError::Mismatch)),
    ] {
        let metrics = Metrics::new().expect("builds");
        let secrets = CacheSecrets::new([secret.clone(), older.clone()]).expect("some");
        let bench = Bench { verifier: Verifier::new(secrets, config(), |_, _, _| (), &metrics), metrics };
        let stored = KeyHash::from(hash(CREDENTIAL)).redacted(sealed_with);
        let hash = KeyHash::parse_redacted(&stored).expect("read");
        let record = Arc::new(KeyRecord { hash, ..(*key(1, CREDENTIAL)).clone() });
        assert_eq!(bench.prove(CREDENTIAL, &[Arc::clone(&record)]).await, expected);
        assert_eq!(bench.prove("ks_samplWrong", &[record]).await, Err(ProofError::Mismatch));
        assert_eq!(bench.computations(), 0);
    }
}

/// bcrypt hashes from Redis cannot be proven, and do not keep the others from it.
#[tokio::test]
async fn hash_from_redis_is_tried_before_bcrypt_hashes_are_read() {
    let secret = CacheSecret::new(b"secret");
    let metrics = Metrics::new().expect("builds");
    let verifier = Verifier::new(CacheSecrets::one(secret.clone()), config(), |_, _, _| (), &metrics);
    let bench = Bench { verifier, metrics };
    let bare = |record: &Arc<KeyRecord>| {
        let hash = KeyHash::parse_redacted(&record.hash.redacted(&secret)).expect("read");
        Arc::new(KeyRecord { hash, ..(**record).clone() })
    };
    let records = [bare(&other(2, "ks_samplTwo")), bare(&key(1, CREDENTIAL))];
    assert_eq!(bench.prove(CREDENTIAL, &records).await, Ok(KeyId(1)));
    assert_eq!(bench.prove("ks_samplTwo", &records).await, Err(ProofError::Unhashed));
}
