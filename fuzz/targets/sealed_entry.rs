//! Whatever stands in Redis, it is believed only under our seal, and then only as far as it goes. The input is
//! taken for an entry, and for the content of one that is sealed rightly.

#![no_main]

use std::{sync::LazyLock, time::Duration};

use data_encoding::BASE64URL_NOPAD;
use keystile::{
    credential::{CacheSecret, CacheSecrets, Digest},
    store::entry::{Entries, Timestamps},
};
use libfuzzer_sys::fuzz_target;
use time::{OffsetDateTime, macros::datetime};

static ENTRIES: LazyLock<Entries> = LazyLock::new(|| Entries::new(CacheSecrets::one(secret())));

const NAME: &str = "keystile:{ks_sampl}:records";
const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);
const AT: Timestamps = Timestamps { instance: NOW, redis: NOW };
const TTL: Duration = Duration::from_secs(300);

fuzz_target!(|text: &str| {
    assert!(ENTRIES.read_records(NAME, text, AT, TTL).is_err(), "it was never sealed");
    let entry = sealed(text);
    assert!(ENTRIES.read_records("keystile:{ks_other}:records", &entry, AT, TTL).is_err(), "it was moved");
    if let Ok(found) = ENTRIES.read_records(NAME, &entry, AT, TTL) {
        assert!(found.age < TTL);
        assert!(found.records.iter().all(|record| record.hash.expose().is_none()), "no hash comes from there");
    }
    let digest = Digest::parse(&"ab".repeat(32)).expect("a digest");
    if let Ok(proof) = ENTRIES.read_proof(NAME, digest, &entry, NOW, TTL) {
        assert!(proof.until > NOW && proof.until <= NOW + TTL);
        assert!(proof.proof_key.digest == digest && proof.proof_key.key.is_some());
    }
});

fn secret() -> CacheSecret {
    CacheSecret::new(b"a secret that the input does not know")
}

/// As `Entries` seals, which takes no content of others.
fn sealed(content: &str) -> String {
    let seal = secret().seal(&[b"1", NAME.as_bytes(), content.as_bytes()]);
    format!("1.{}.{content}", BASE64URL_NOPAD.encode(&seal))
}
