//! An entry in Redis is accepted only under a valid seal, and within its bounds. The input is used as an entry, and as the
//! content of an entry with a valid seal.

use std::{sync::LazyLock, time::Duration};

use data_encoding::BASE64URL_NOPAD;
use keystile::{
    config::AccountLock,
    credential::{CacheSecret, CacheSecrets, Digest},
    store::envelope::{Envelopes, RedisTimestamps},
};
use time::{OffsetDateTime, macros::datetime};

static ENVELOPES: LazyLock<Envelopes> =
    LazyLock::new(|| Envelopes::new(CacheSecrets::one(secret()), AccountLock::Deny));

const NAME: &str = "keystile:{ks_sampl}:records";
const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);
const AT: RedisTimestamps = RedisTimestamps { instance: NOW, redis: NOW };
const TTL: Duration = Duration::from_secs(300);

/// Fails if a fact does not hold for this input.
pub fn check(text: &str) {
    assert!(ENVELOPES.read_records(NAME, text, AT, TTL).is_err(), "it was never sealed");
    let entry = sealed(text);
    assert!(ENVELOPES.read_records("keystile:{ks_other}:records", &entry, AT, TTL).is_err(), "it was moved");
    if let Ok(found) = ENVELOPES.read_records(NAME, &entry, AT, TTL) {
        assert!(found.age < TTL);
        assert!(
            found.records.iter().all(|record| record.hash.expose().is_none()),
            "no hash comes from there"
        );
    }
    let digest = Digest::parse(&"ab".repeat(32)).expect("a digest");
    if let Ok(proof) = ENVELOPES.read_proof(NAME, digest, &entry, NOW, TTL) {
        assert!(proof.until > NOW && proof.until <= NOW + TTL);
        assert!(proof.proof_key.digest == digest && proof.proof_key.key.is_some());
    }
}

fn secret() -> CacheSecret {
    CacheSecret::new(b"a secret that the input does not know")
}

/// The same seal as that of `Envelopes`, which accepts no foreign content.
fn sealed(content: &str) -> String {
    let seal = secret().seal(&[b"2", NAME.as_bytes(), content.as_bytes()]);
    format!("2.{}.{content}", BASE64URL_NOPAD.encode(&seal))
}
