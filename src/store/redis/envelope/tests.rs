//! Which entries are accepted.

use time::macros::datetime;

use super::*;
use crate::{credential::CacheSecret, record::fixtures};

const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);
const NAME: &str = "keystile:{ks_sampl}:records";
const TTL: Duration = Duration::from_secs(300);

/// The same on both clocks.
fn at(time: OffsetDateTime) -> RedisTimestamps {
    RedisTimestamps { instance: time, redis: time }
}

fn envelopes(secrets: &[&[u8]]) -> Envelopes {
    let secrets = CacheSecrets::new(secrets.iter().map(|secret| CacheSecret::new(secret))).expect("some");
    Envelopes::new(secrets, AccountLock::Deny)
}

fn lookup() -> Lookup {
    let mut row = decode::fixtures::row_with(&[("name", Some("build")), ("scopes", Some(r#"["chat"]"#))]);
    // The log position follows the columns.
    row.push(Some("5/7:9:8".into()));
    let record = decode::decode(&row, AccountLock::Deny).expect("decodes");
    let seen = Some(Arc::new("5/7:9:8".parse().expect("a position")));
    Lookup { seen, rows: Arc::from([row]), ..Lookup::fresh([Arc::new(record)], Tier::Database) }
}

#[test]
fn records_are_restored_without_their_hash() {
    let (envelopes, lookup) = (envelopes(&[b"one"]), lookup());
    let entry = envelopes.records(NAME, &lookup, at(NOW));
    let read = envelopes.read_records(NAME, &entry, at(NOW + Duration::from_secs(9)), TTL).expect("good");
    assert_eq!((read.tier, read.age, &read.seen), (Tier::Redis, Duration::from_secs(9), &lookup.seen));
    let (ours, theirs) = (&lookup.records[0], &read.records[0]);
    assert_eq!((theirs.hash.tag(), theirs.hash.expose()), (ours.hash.tag(), None));
    let with_hash = crate::record::KeyRecord { hash: ours.hash.clone(), ..(**theirs).clone() };
    assert_eq!(with_hash, **ours);
    for hidden in [fixtures::HASH, &fixtures::HASH[7..], fixtures::CREDENTIAL] {
        assert!(!entry.contains(hidden), "{entry}");
    }
}

#[test]
fn sha256_hash_is_restored_in_a_form_that_needs_the_secret() {
    let credential =
        crate::credential::Credential::parse(fixtures::CREDENTIAL.as_bytes()).expect("well-formed");
    let hash = crate::record::Sha256Hash::of(&credential);
    let row = decode::fixtures::row_with(&[("key_hash", Some(&hash.expose()))]);
    let record = decode::decode(&row, AccountLock::Deny).expect("decodes");
    let lookup = Lookup { rows: Arc::from([row]), ..Lookup::fresh([Arc::new(record)], Tier::Database) };
    let entry = envelopes(&[b"one"]).records(NAME, &lookup, at(NOW));
    let read = envelopes(&[b"two", b"one"]).read_records(NAME, &entry, at(NOW), TTL).expect("good");
    let crate::record::HashKind::Sha256(theirs) = read.records[0].hash.kind() else { panic!("another kind") };
    let secrets = |text: &[u8]| CacheSecrets::one(CacheSecret::new(text));
    assert!(theirs.matches(&hash, Some(&secrets(b"one"))));
    assert!(!theirs.matches(&hash, Some(&secrets(b"two"))) && !theirs.matches(&hash, None));
    for hidden in [&hash.expose()[8..], &lookup.records[0].hash.tag().to_text(), fixtures::CREDENTIAL] {
        assert!(!entry.contains(hidden), "{entry}");
    }
}

#[test]
fn changed_or_moved_entry_is_invalid() {
    let envelopes = envelopes(&[b"one"]);
    let entry = envelopes.records(NAME, &lookup(), at(NOW));
    let read = |name: &str, entry: &str| envelopes.read_records(name, entry, at(NOW), TTL).map(drop);
    assert_eq!(read(NAME, &entry), Ok(()));
    assert_eq!(read("keystile:{ks_other}:records", &entry), Err(InvalidEntry::Seal));
    assert_eq!(read(NAME, &entry.replace("chat", "root")), Err(InvalidEntry::Seal));
    assert_eq!(read(NAME, &entry.replacen('2', "1", 1)), Err(InvalidEntry::Version));
    for end in 0..entry.len() {
        assert!(read(NAME, &entry[..end]).is_err(), "cut at {end}");
    }
    for nonsense in ["", ".", "2.", "2..", "2.AAAA.{}", "null", "{}"] {
        assert!(read(NAME, nonsense).is_err(), "{nonsense}");
    }
}

#[test]
fn age_is_the_greater_of_two_clocks() {
    let envelopes = envelopes(&[b"one"]);
    let entry = envelopes.records(NAME, &lookup(), at(NOW));
    let age = |instance: i64, redis: i64| {
        let later = |seconds| NOW + time::Duration::seconds(seconds);
        let now = RedisTimestamps { instance: later(instance), redis: later(redis) };
        envelopes.read_records(NAME, &entry, now, TTL).map(|lookup| lookup.age.as_secs())
    };
    for (instance, redis, expected) in [
        (0, 0, Ok(0)),
        (299, 299, Ok(299)),
        (300, 300, Err(InvalidEntry::Age)),
        // The clock of one instance is behind, that of the other is ahead.
        (-3600, 40, Ok(40)),
        (100, 40, Ok(100)),
        (300, 40, Err(InvalidEntry::Age)),
        (40, 300, Err(InvalidEntry::Age)),
        // The clock of Redis is behind the entry: it is another server, or its clock was set.
        (40, -1, Err(InvalidEntry::Age)),
        (i64::from(i32::MAX), 0, Err(InvalidEntry::Age)),
    ] {
        assert_eq!(age(instance, redis), expected, "{instance} s later, in Redis {redis} s");
    }
}

#[test]
fn older_secrets_are_accepted_until_they_are_removed() {
    let old = envelopes(&[b"old"]).records(NAME, &lookup(), at(NOW));
    let read = |envelopes: &Envelopes| envelopes.read_records(NAME, &old, at(NOW), TTL).map(drop);
    assert_eq!(read(&envelopes(&[b"new", b"old"])), Ok(()));
    assert_eq!(read(&envelopes(&[b"new"])), Err(InvalidEntry::Seal));
    let new = envelopes(&[b"new", b"old"]).records(NAME, &lookup(), at(NOW));
    assert!(envelopes(&[b"new"]).read_records(NAME, &new, at(NOW), TTL).is_ok(), "the newest seals");
}

#[test]
fn proof_is_of_one_credential_for_one_record_with_one_hash() {
    let envelopes = envelopes(&[b"one"]);
    let record = fixtures::record();
    let digest = Digest::parse(&"ab".repeat(32)).expect("a digest");
    let proof_key = ProofKey { digest, key: Some(record.id), hash: record.hash.tag() };
    let entry = envelopes.proof("p:ab", &proof_key, NOW, NOW + TTL * 2).expect("of a record");
    let later = NOW + Duration::from_secs(100);
    let proof = envelopes.read_proof("p:ab", digest, &entry, later, TTL).expect("good");
    assert_eq!(proof, Proof { proof_key, until: NOW + TTL, ends: NOW + TTL * 2 });
    assert_eq!(envelopes.read_proof("p:cd", digest, &entry, NOW, TTL), Err(InvalidEntry::Seal));
    for (time, expected) in
        [(NOW + TTL, false), (NOW - SKEW, true), (NOW - SKEW - Duration::from_secs(1), false)]
    {
        assert_eq!(envelopes.read_proof("p:ab", digest, &entry, time, TTL).is_ok(), expected, "{time}");
    }
    assert_eq!(
        envelopes.proof("p:ab", &ProofKey { key: None, ..proof_key }, NOW, NOW + TTL),
        None,
        "no record is proven"
    );
}

#[test]
fn entry_of_another_kind_is_invalid() {
    let envelopes = envelopes(&[b"one"]);
    let record = fixtures::record();
    let digest = Digest::parse(&"ab".repeat(32)).expect("a digest");
    let proof_key = ProofKey { digest, key: Some(record.id), hash: record.hash.tag() };
    let proof = envelopes.proof(NAME, &proof_key, NOW, NOW + TTL).expect("of a record");
    assert_eq!(envelopes.read_records(NAME, &proof, at(NOW), TTL).map(drop), Err(InvalidEntry::Content));
}
