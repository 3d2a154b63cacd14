//! What is read of Kong's exports.

use proptest::prelude::*;
use time::macros::datetime;

use super::*;

const OPTIONS: ReadOptions =
    ReadOptions { written_at: datetime!(2026-01-02 03:04:05 UTC), allow_short_keys: false };

fn errors(text: &str) -> Vec<String> {
    let contents = read(text, OPTIONS).expect("read");
    contents.errors.iter().map(|(line, error)| format!("{}: {error}", contents.places[line])).collect()
}

#[test]
fn key_that_cannot_be_one_is_named_by_its_consumer() {
    let file = |key: &str| format!("consumers:\n- username: ada\n  keyauth_credentials:\n  - key: {key}\n");
    for (key, words) in [
        ("0123456789012345", "put it in quotes"),
        ("short-secret", "fewer than 16"),
        ("\"a secret with spaces\"", "visible ASCII"),
        ("sécret-of-many-characters", "visible ASCII"),
        ("a,secret,of,many,characters", "without a comma"),
        ("'{vault://env/secret-of-somebody}'", "vault"),
        ("'${{ env \"DECK_SECRET\" }}'", "variable of decK"),
        ("[secret]", "no text"),
        ("", "no key"),
    ] {
        let found = errors(&file(key));
        assert!(matches!(&found[..], [error] if error.contains(words)), "{key}: {found:?}");
        assert!(found[0].starts_with("key 1 of consumer ada: ") && !found[0].contains("secret"), "{found:?}");
    }
    assert_eq!(errors(&file(&format!("\"{}\"", "k".repeat(73)))).len(), 1);
    assert_eq!(errors(&file(&format!("\"{}\"", "k".repeat(72)))), Vec::<String>::new());
}

#[test]
fn ttl_is_a_time_or_counts_from_when_the_file_was_written() {
    for (ttl, end) in [
        ("3600", Some("2026-01-02T04:04:05Z")),
        ("1893456000", Some("2030-01-01T00:00:00Z")),
        ("-1", Some("2026-01-02T03:04:04Z")),
        ("0", None),
        ("~", None),
    ] {
        let key = documents::parse(&format!("ttl: {ttl}")).expect("YAML").remove(0);
        let ttl = key.get("ttl").filter(|ttl| !ttl.is_null() && ttl.as_f64() != Some(0.0));
        assert_eq!(ttl.and_then(|ttl| expiry(ttl, OPTIONS)).as_deref(), end);
    }
    let file = "consumers: [{username: a, keyauth_credentials: [{key: abcdefghijklmnop, ttl: soon}]}]";
    assert!(errors(file)[0].contains("ttl"));
}

#[test]
fn incomplete_or_foreign_files_are_refused() {
    for (file, words) in [
        ("", "empty"),
        ("consumers: []", "has no keyauth_credentials"),
        ("- a\n- b: [", "line 2"),
        ("{\"data\": [", "line 1"),
        ("7", "neither an object nor a list"),
        (
            r#"{"data": [{"key": "abcdefghijklmnop", "consumer": {"id": "1"}}], "next": "/key-auths?offset=x"}"#,
            "more",
        ),
        (
            r#"{"data": [{"key": "abcdefghijklmnop", "consumer": {"id": "1"}}], "next": null}
               {"data": [{"username": "a", "id": "1"}], "next": "/consumers?offset=x"}"#,
            "more",
        ),
    ] {
        let error = read(file, OPTIONS).err().expect(words).to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn what_restricts_consumers_is_a_loss_and_the_rest_is_noted() {
    let file = "
_format_version: '3.0'
consumers:
- username: ada
  keyauth_credentials: [{key: abcdefghijklmnop, tags: ['keystile:shadow', blue], unheard_of: 1}]
  basicauth_credentials: [{username: ada, password: secret}]
  acls: [{group: readers}, {group: two words}]
  groups: [{name: gold}]
  plugins: [{name: rate-limiting, config: {minute: 5}}]
  unheard_of: true
plugins:
- {name: ip-restriction, consumer: ada}
- {name: rate-limiting, consumer_group: gold}
- {name: cors}
- {name: key-auth}
consumer_groups: [{name: gold, plugins: [{name: rate-limiting-advanced}]}]
";
    let contents = read(file, OPTIONS).expect("read");
    assert!(contents.errors.is_empty() && contents.losses.restricts());
    let restrictions: Vec<_> = contents.losses.restrictions().lines().map(str::to_owned).collect();
    assert_eq!(
        restrictions,
        [
            "  ACL group that cannot be a scope, or has no consumer here (1)",
            "  consumer group (1)",
            "  consumers.unheard_of (1)",
            "  keyauth_credentials.unheard_of (1)",
            "  plugin ip-restriction of a consumer (1)",
            "  plugin rate-limiting of a consumer (1)",
            "  plugin rate-limiting of a consumer group (1)",
            "  plugin rate-limiting-advanced of a consumer group (1)",
        ]
    );
    let all = contents.losses.all();
    for other in ["basicauth_credentials (1)", "plugin cors (1)", "tag that begins with keystile: (1)"] {
        assert!(all.contains(other) && !contents.losses.restrictions().contains(other), "{all}");
    }
    assert!(!all.contains("secret") && !all.contains("key-auth "));
}

#[test]
fn export_of_many_keys_is_read_and_one_of_many_aliases_is_not() {
    let consumer = |n: usize| {
        format!(
            "- username: user{n}\n  tags: [a, b, c]\n  keyauth_credentials:\n  - key: key-number-{n:08}\n    ttl: ~\n"
        )
    };
    let file: String = (0..30_000).map(consumer).collect();
    assert_eq!(read(&format!("consumers:\n{file}"), OPTIONS).expect("read").rows.len(), 30_000);
    let levels = (1..12).map(|n| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", ")));
    let bomb: String = ["a0: &a0 [key, key]\n".to_owned()].into_iter().chain(levels).collect();
    assert!(read(&bomb, OPTIONS).is_err());
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_without_repeating_it(
        text in "[\\{\\[\\-a-z:'\"&*!|> \n]{0,40}(consumers: \\[\\{keyauth_credentials: \\[\\{key: )?s3cr3t[\\PC\n]{0,80}"
    ) {
        match read(&text, OPTIONS) {
            Err(error) => prop_assert!(!error.to_string().contains("s3cr3t")),
            Ok(contents) => prop_assert!(contents.errors.values().all(|error| !error.contains("s3cr3t"))),
        }
    }

    #[test]
    fn any_json_in_its_place_is_read_or_refused_without_repeating_it(
        key in any_json(), consumer in any_json(), ttl in any_json(), tags in any_json(), is_page in any::<bool>()
    ) {
        let key = serde_json::json!({ "key": key, "consumer": consumer, "ttl": ttl, "tags": tags });
        let file = if is_page {
            serde_json::json!({ "data": [key, consumer], "next": null })
        } else {
            serde_json::json!({ "consumers": [consumer, { "username": tags }], "keyauth_credentials": [key] })
        };
        match read(&file.to_string(), OPTIONS) {
            Err(error) => prop_assert!(!error.to_string().contains("s3cr3t")),
            Ok(contents) => prop_assert!(contents.errors.values().all(|error| !error.contains("s3cr3t"))),
        }
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "s3cr3t[\\PC]{0,70}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::hash_map("(id|username|custom_id|key|group|tags|acls)", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}
