//! What is read of Unkey's exports.

use proptest::prelude::*;
use serde_json::json;
use time::macros::datetime;

use super::*;

const OPTIONS: ReadOptions =
    ReadOptions { written_at: datetime!(2026-01-02 03:04:05 UTC), allow_short_keys: false };

/// SHA-256 of nothing, as Unkey writes it.
const HASH: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

fn read_one(key: &Value) -> Contents {
    read(&key.to_string(), OPTIONS).expect("read")
}

fn error(key: &Value) -> String {
    let contents = read_one(key);
    let errors: Vec<_> =
        contents.errors.iter().map(|(line, error)| format!("{}: {error}", contents.places[line])).collect();
    errors.join("\n")
}

#[test]
fn key_without_enough_to_find_it_is_named_by_its_id() {
    for (key, words) in [
        (json!({ "keyId": "key_1", "start": "acme_abcd" }), "neither plaintext nor hash"),
        (json!({ "keyId": "key_1", "start": "abcd", "hash": HASH }), "start has fewer than 8"),
        (json!({ "keyId": "key_1", "hash": HASH }), "start has fewer than 8"),
        (json!({ "keyId": "key_1", "start": "äöüßabcd", "hash": HASH }), "start has fewer than 8"),
        (json!({ "id": "key_1", "start": "acme_abcd", "hash": "s3cr3t" }), "hash is no SHA-256"),
        (json!({ "id": "key_1", "plaintext": "s3cr3t-123" }), "fewer than 16"),
        (json!({ "id": "key_1", "start": "acme_abcd", "hash": HASH, "enabled": "s3cr3t" }), "enabled"),
        (json!({ "id": "key_1", "start": "acme_abcd", "hash": HASH, "expires": "s3cr3t" }), "expires_at"),
        (
            json!({ "id": "key_1", "start": "acme_abcd", "hash": HASH, "permissions": ["s3cr3t x"] }),
            "permissions",
        ),
    ] {
        let error = error(&key);
        assert!(
            error.starts_with("key key_1: ") && error.contains(words) && !error.contains("s3cr3t"),
            "{error}"
        );
    }
    for hash in
        [HASH, HASH.trim_end_matches('='), "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU", &"E3".repeat(32)]
    {
        assert_eq!(error(&json!({ "start": "acme_abcd", "hash": hash })), "", "{hash}");
    }
}

#[test]
fn last_page_has_to_be_the_last() {
    let page = |more: bool| json!({ "meta": {}, "data": [{ "plaintext": "abcdefghijklmnop" }], "pagination": { "hasMore": more } });
    let error = read(&page(true).to_string(), OPTIONS).err().expect("incomplete").to_string();
    assert!(error.contains("more"), "{error}");
    let both = format!("{}\n{}", page(true), page(false));
    assert_eq!(read(&both, OPTIONS).expect("complete").rows.len(), 2);
}

#[test]
fn limits_of_other_windows_and_credits_are_losses() {
    let limit = |duration: u64, limit: u64, apply: bool| json!({ "name": "n", "limit": limit, "duration": duration, "autoApply": apply });
    let key = json!({
        "start": "acme_abcd", "hash": HASH, "meta": { "a": 1 }, "roles": ["r"], "enabled": 0, "lastUsedAt": 5,
        "credits": { "remaining": 3 }, "unheard_of": 1, "deleted_at_m": null,
        "identity": { "id": "id_1", "externalId": "ada@example.com", "ratelimits": [limit(1000, 1, true)] },
        "ratelimits": [limit(60_000, 9, true), limit(60_000, 5, true), limit(1000, 1, true), limit(60_000, 1, false)],
    });
    let contents = read_one(&key);
    assert_eq!(
        contents.losses.restrictions().lines().map(str::trim).collect::<Vec<_>>(),
        [
            "credits: the number of requests that remain (1)",
            "ratelimit of a window other than a minute, an hour or a day (1)",
            "ratelimit of an identity (1)",
            "ratelimit that is applied on request (1)",
            "unheard_of (1)",
        ]
    );
    assert!(contents.losses.all().contains("meta (1)") && contents.losses.all().contains("roles (1)"));
    let silent = read_one(&json!({ "start": "acme_abcd", "hash": HASH }));
    assert!(silent.losses.restrictions().contains("ratelimits, which the file does not tell of (1)"));
    let deleted = read_one(&json!({ "hash": HASH, "deleted_at_m": 1_700_000_000_000_u64 }));
    assert!(
        deleted.rows.is_empty()
            && deleted.errors.is_empty()
            && deleted.losses.all().contains("deleted key (1)")
    );
}

proptest! {
    #[test]
    fn any_values_are_read_or_refused_without_repeating_them(
        field in prop::sample::select(&KNOWN[..]), value in any_json(), noise in "s3cr3t[\\PC]{0,40}"
    ) {
        for text in [json!({ field: value }).to_string(), json!([{ field: [value] }]).to_string(), noise] {
            match read(&text, OPTIONS) {
                Err(error) => prop_assert!(!error.to_string().contains("s3cr3t")),
                Ok(contents) => prop_assert!(contents.errors.values().all(|error| !error.contains("s3cr3t"))),
            }
        }
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "s3cr3t[\\PC]{0,70}".prop_map(Value::from),
        "s3cr3t"
            .prop_map(|text| json!({ "externalId": text, "duration": text, "limit": text, "credits": text })),
    ]
}
