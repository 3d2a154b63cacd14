//! Stored proofs, and attacks by someone who can read or write their table.

use proptest::prelude::*;
use time::macros::datetime;

use super::*;
use crate::{
    credential::{CacheSecret, Credential},
    record::{KeyHash, fixtures},
};

const PROVEN_AT: OffsetDateTime = datetime!(2026-01-02 03:04:05.678 UTC);

fn secret(text: &str) -> CacheSecret {
    CacheSecret::new(text.as_bytes())
}

fn seals(secrets: &[&str]) -> ProofSeals {
    ProofSeals::new(CacheSecrets::new(secrets.iter().map(|text| secret(text))).expect("some"))
}

/// The proof key of the sample key under this secret.
fn proof_key(text: &str) -> ProofKey {
    let credential = Credential::parse(fixtures::CREDENTIAL.as_bytes()).expect("well-formed");
    let record = fixtures::record();
    ProofKey { digest: credential.digest(&secret(text)), key: Some(record.id), hash: record.hash.tag() }
}

fn values() -> [String; 3] {
    seals(&["one"]).seal(&proof_key("one"), PROVEN_AT).expect("of a key").values()
}

fn open(values: &[String; 3], now: OffsetDateTime) -> Result<Proof, InvalidProof> {
    seals(&["one"]).open(&fixtures::record(), values, now)
}

fn other_hash() -> KeyHash {
    bcrypt::hash(fixtures::CREDENTIAL, 4).expect("hashes").parse().expect("accepted")
}

#[test]
fn sealed_proof_opens_with_its_content() {
    let proof = open(&values(), PROVEN_AT).expect("believed");
    assert_eq!(proof.proof_key, proof_key("one"));
    let believed = Duration::try_from(proof.until - PROVEN_AT).expect("later");
    assert!(believed <= MAX_AGE && believed >= MAX_AGE / 10 * 9, "{believed:?}");
}

#[test]
fn proof_is_valid_for_at_most_seven_days_from_its_bcrypt_run() {
    let until = open(&values(), PROVEN_AT).expect("believed").until;
    let nearly = until - Duration::from_millis(1);
    assert_eq!(open(&values(), nearly).expect("believed").until, until, "no reading moves the end");
    assert_eq!(open(&values(), until), Err(InvalidProof::Age));
    let skew = Duration::from_secs(60);
    assert!(open(&values(), PROVEN_AT - skew).is_ok(), "another machine's clock");
    let early = PROVEN_AT - skew - Duration::from_millis(1);
    assert_eq!(open(&values(), early), Err(InvalidProof::Age));
    assert!(oldest(until + MAX_AGE) > millis(PROVEN_AT), "and then it is deleted");
    assert!(oldest(nearly) <= millis(PROVEN_AT), "but not before");
}

#[test]
fn proofs_of_one_minute_do_not_expire_in_one_minute() {
    let mut ends: Vec<_> = (0..1000)
        .map(|n| {
            let credential = Credential::parse(format!("ks_key{n:08}").as_bytes()).expect("well-formed");
            let proof_key = ProofKey { digest: credential.digest(&secret("one")), ..proof_key("one") };
            let values = seals(&["one"]).seal(&proof_key, PROVEN_AT).expect("of a key").values();
            open(&values, PROVEN_AT).expect("believed").until
        })
        .collect();
    ends.sort_unstable();
    let most_in_a_minute = ends.iter().enumerate().map(|(n, end)| {
        ends[n..].iter().take_while(|other| **other < *end + Duration::from_secs(60)).count()
    });
    assert!(most_in_a_minute.max() < Some(20));
}

#[test]
fn row_of_another_key_hash_or_secret_is_rejected() {
    let (values, record) = (values(), fixtures::record());
    let moved = KeyRecord { id: KeyId(record.id.0 + 1), ..record.clone() };
    let rehashed = KeyRecord { hash: other_hash(), ..record.clone() };
    for record in [moved, rehashed] {
        assert_eq!(seals(&["one"]).open(&record, &values, PROVEN_AT), Err(InvalidProof::Seal));
    }
    assert_eq!(seals(&["two"]).open(&record, &values, PROVEN_AT), Err(InvalidProof::Seal));
    assert!(seals(&["two", "one"]).open(&record, &values, PROVEN_AT).is_ok(), "while a secret is replaced");
}

#[test]
fn nothing_in_a_row_can_be_computed_without_the_secret() {
    use sha2::{Digest as _, Sha256};
    let [tag, proven_at, seal] = values();
    let sha256 = |bytes: &[u8]| data_encoding::HEXLOWER.encode(&Sha256::digest(bytes));
    let record = fixtures::record();
    for known in [
        fixtures::CREDENTIAL.to_owned(),
        sha256(fixtures::CREDENTIAL.as_bytes()),
        sha256(fixtures::HASH.as_bytes()),
        record.hash.tag().to_text(),
        record.hash.expose().expect("whole").to_owned(),
    ] {
        let row = format!("{tag} {proven_at} {seal}");
        assert!(!row.contains(&known) && !known.contains(&tag), "{known}");
    }
    let [other_tag, _, other_seal] =
        seals(&["two"]).seal(&proof_key("two"), PROVEN_AT).expect("of a key").values();
    assert!(tag != other_tag && seal != other_seal, "both are keyed");
}

proptest! {
    /// A row with any change is rejected.
    #[test]
    fn changed_row_is_rejected(column in 0..3_usize, at in any::<prop::sample::Index>(), byte in 0x20..0x7f_u8) {
        let mut changed = values();
        let text = &mut changed[column];
        let at = at.index(text.len());
        text.replace_range(at..=at, &char::from(byte).to_string());
        let is_same = changed == values();
        prop_assert_eq!(open(&changed, PROVEN_AT).is_ok(), is_same, "{:?}", changed);
    }

    #[test]
    fn any_values_are_read_or_refused(values in [".{0,80}", "-?[0-9]{0,25}", "[A-Za-z0-9_=-]{0,50}"]) {
        prop_assert!(open(&values, PROVEN_AT).is_err());
    }
}
